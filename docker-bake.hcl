# `docker buildx bake` builds the four images; `bake example` the examples on top of them; `bake validate` checks.

variable "VERSION" {
  default = "0.2.0" # as in runtime/hiveio/__init__.py; a test compares them
}

variable "REVISION" {
  default = "" # of the source: REVISION=$(git rev-parse HEAD)
}

variable "RELEASE" {
  default = false # true: for both platforms, with SBOM and provenance; needs a builder that has both, and --push
}

variable "PYTHON" {
  default = null # another parent than the one in images/base/Dockerfile
}

# As pip takes them from the environment, for who needs them; see images/base/Dockerfile.
variable "PIP_INDEX_URL" {
  default = ""
}

variable "PIP_CERT" {
  default = "" # a file; outside of this folder it needs --allow=fs.read=$PIP_CERT
}

group "default" {
  targets = ["base", "role"]
}

target "_common" {
  labels = {
    "org.opencontainers.image.version"  = VERSION
    "org.opencontainers.image.revision" = REVISION
  }
  platforms = RELEASE ? ["linux/amd64", "linux/arm64"] : []
  attest    = RELEASE ? ["type=sbom", "type=provenance,mode=max"] : []
}

target "base" {
  inherits   = ["_common"]
  dockerfile = "images/base/Dockerfile"
  args       = { PYTHON = PYTHON }
  secret = concat(
    PIP_INDEX_URL == "" ? [] : ["id=PIP_INDEX_URL,env=PIP_INDEX_URL"],
    PIP_CERT == "" ? [] : ["id=PIP_CERT,src=${PIP_CERT}"],
  )
  tags       = ["hiveio/base:latest", "hiveio/base:${VERSION}"]
}

target "role" {
  inherits = ["_common"]
  name     = role
  matrix   = { role = ["producer", "consumer", "stream-processor"] }
  context  = "images/${role}"
  contexts = { "hiveio/base" = "target:base" }
  tags     = ["hiveio/${role}:latest", "hiveio/${role}:${VERSION}"]
}

# The checks of docker build, without building; a warning fails. Children are read on the root image.
group "validate" {
  targets = ["check-base", "check"]
}

target "check-base" {
  inherits = ["base"]
  args     = { BUILDKIT_DOCKERFILE_CHECK = "error=true" }
  call     = "check"
}

target "check" {
  name    = "check-${role}"
  matrix  = { role = ["producer", "consumer", "stream-processor"] }
  context = "images/${role}"
  args    = { BASE = "python:3.13-slim-bookworm", BUILDKIT_DOCKERFILE_CHECK = "error=true" }
  call    = "check"
}

group "example" {
  targets = ["bank", "orders"]
}

target "orders" {
  name       = "orders-${service}"
  matrix     = { service = ["orders", "payments", "stock", "fulfilment"] }
  context    = "examples/orders"
  dockerfile = "${service}.Dockerfile"
  contexts   = { "hiveio/stream-processor" = "target:stream-processor" }
  tags       = ["orders/${service}:latest"]
}

target "bank" {
  name = "bank-${service.name}"
  matrix = {
    service = [
      { name = "accounts", role = "stream-processor" },
      { name = "statements", role = "consumer" },
      { name = "visits", role = "producer" },
      { name = "quotes", role = "base" },
    ]
  }
  context    = "examples/bank"
  dockerfile = "${service.name}.Dockerfile"
  contexts   = { "hiveio/${service.role}" = "target:${service.role}" }
  tags       = ["bank/${service.name}:latest"]
}

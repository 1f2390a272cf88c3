# `docker buildx bake`: the image of @name@, on the hiveio/@role@ that is here or in your registry.
group "default" {
  targets = ["@name@"]
}

target "@name@" {
  tags = ["@name@:latest"]
}

module hiveio/actionlint

go 1.21

variable "TAG" { default = "latest" }

group "default" { targets = ["base", "web"] }

target "common" {
  platforms = ["linux/amd64", "linux/arm64", "linux/arm/v6"]
}

# The base image of the team. It is an image of its own: it is verified, run and tagged too.
target "base" {
  inherits = ["common"]
  context  = "base"
  tags     = ["example-base:${TAG}"]
}

# `FROM team-base` in web/Dockerfile is the target above, which is built first.
target "web" {
  inherits = ["common"]
  context  = "web"
  contexts = { team-base = "target:base" }
  tags     = ["example-web:${TAG}"]
}

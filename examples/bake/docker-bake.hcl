variable "TAG" { default = "latest" }

group "default" { targets = ["base", "web"] }

target "common" {
  platforms = ["linux/amd64", "linux/arm64", "linux/arm/v6"]
}

# The team's base image. It is also verified, run and tagged as an image by itself.
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

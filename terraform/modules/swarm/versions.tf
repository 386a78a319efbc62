# Only the builtin provider: nothing is downloaded, so that it works on closed networks.
terraform {
  required_version = ">= 1.9"
}

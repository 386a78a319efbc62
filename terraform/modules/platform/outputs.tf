output "proxy" {
  description = "Where users call, by node."
  value       = { for name, node in var.nodes : name => "http://${strcontains(node.address, ":") ? "[${node.address}]" : node.address}:${var.port}" }
  depends_on  = [terraform_data.deploy]
}

output "board" {
  description = "Where the board and the API are, if `board_port` publishes them; its certificate is signed by `ca.pem` in `secrets_folder`."
  value       = var.board_port == null ? null : "https://${strcontains(var.nodes[local.state].address, ":") ? "[${var.nodes[local.state].address}]" : var.nodes[local.state].address}:${var.board_port}"
  depends_on  = [terraform_data.deploy]
}

output "grafana" {
  description = "Where Grafana is, if `parts` have it."
  value       = contains(local.names, "grafana") ? "http://${strcontains(var.nodes[local.state].address, ":") ? "[${var.nodes[local.state].address}]" : var.nodes[local.state].address}:${var.grafana_port}" : null
  depends_on  = [terraform_data.deploy]
}

output "friday" {
  description = "How to call the command line beside the controller, from the root of the project."
  value       = "DOCKER_HOST=${var.nodes[local.managers[0]].docker_host} FRIDAY_SECRETS=${local.secret} swarm/friday"
  depends_on  = [terraform_data.deploy]
}

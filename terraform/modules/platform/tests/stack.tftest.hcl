# What the module refuses before it touches an engine, and the stack that it would deploy. Nothing is applied here.

variables {
  secrets_folder = "secrets"
  nodes = {
    a = { docker_host = "unix:///a", address = "10.0.0.11", role = "manager", labels = { "friday.state" = "here" } }
    b = { docker_host = "unix:///b", address = "fd00::12", role = "worker" }
  }
}

run "plans_the_whole_stack_and_the_released_service_apart" {
  command = plan

  assert {
    condition     = length(setsubtract(["proxy", "controller", "agent", "prometheus", "feeder", "sink", "jobs", "stats", "ingest", "kafka", "postgres", "producer", "subscriber"], keys(jsondecode(local.stack).services))) == 0
    error_message = "all parts are there"
  }
  assert {
    condition     = !contains(keys(jsondecode(local.stack).services), "tweets-worker") && keys(jsondecode(local.first).services) == ["tweets-worker"]
    error_message = "the service that Friday releases is not in what is deployed again and again"
  }
  assert {
    condition     = jsondecode(local.stack).services.proxy.secrets[0].mode == 256 && jsondecode(local.stack).services.proxy.configs[0].mode == 292
    error_message = "0400 and 0444 are octal numbers"
  }
  assert {
    condition     = jsondecode(local.stack).configs.friday.name == "friday_friday_${substr(filesha256("../../../swarm/friday.yml"), 0, 12)}"
    error_message = "a config's name has its content's hash"
  }
  assert {
    condition     = alltrue([for secret in values(jsondecode(local.stack).secrets) : strcontains(secret.name, "$${HASH_") && strcontains(secret.file, "$${FRIDAY_SECRETS}/")])
    error_message = "secrets are read, and their hashes made, by the script that deploys them"
  }
  assert {
    condition     = alltrue([for volume in values(jsondecode(local.stack).volumes) : volume.labels["friday.platform"] == "$${PLATFORM_ID}"])
    error_message = "volumes bear the name of the deployment that they are of"
  }
  assert {
    condition     = output.proxy == { a = "http://10.0.0.11:8080", b = "http://[fd00::12]:8080" } && output.board == null
    error_message = "users call every node; the board is not published unless it is asked for"
  }
  assert {
    condition     = output.grafana == "http://10.0.0.11:3000"
    error_message = "Grafana is on the node with the data"
  }
  assert {
    condition     = !can(jsondecode(local.stack).services.controller.ports)
    error_message = "the controller is in the swarm's network alone"
  }
}

run "leaves_parts_out_with_what_only_they_use" {
  command = plan
  variables {
    parts      = ["worker"]
    board_port = 7443
    port       = 80
    images     = { controller = "registry.example.org/friday:1", worker = "worker:v1" }
  }

  assert {
    condition     = sort(keys(jsondecode(local.stack).services)) == tolist(["controller", "proxy"])
    error_message = "controller and proxies are always there, what was left out is not"
  }
  assert {
    condition     = !contains(keys(jsondecode(local.stack).secrets), "postgres_password") && !contains(keys(jsondecode(local.stack).configs), "prometheus")
    error_message = "secrets and configs of parts that are left out are not made"
  }
  assert {
    condition     = !strcontains(jsonencode(jsondecode(local.stack).services.controller.command), "prometheus")
    error_message = "the controller does not ask a Prometheus that is not there"
  }
  assert {
    condition     = jsondecode(local.stack).services.controller.ports[0].published == 7443 && output.board == "https://10.0.0.11:7443"
    error_message = "the board is published where it is said to be"
  }
  assert {
    condition     = output.grafana == null
    error_message = "a Grafana that was left out has no address"
  }
  assert {
    condition     = local.environment.FRIDAY_IMAGE == "registry.example.org/friday:1" && !can(local.environment.WORKER_IMAGE) && local.environment.FRIDAY_PORT == "80"
    error_message = "the image of the released service changes nothing of the deployment"
  }
}

run "refuses_nodes_without_a_manager" {
  command = plan
  variables {
    nodes = { a = { docker_host = "unix:///a", address = "10.0.0.11", role = "worker" } }
  }
  expect_failures = [var.nodes]
}

run "refuses_data_without_a_place" {
  command = plan
  variables {
    nodes = { a = { docker_host = "unix:///a", address = "10.0.0.11", role = "manager" } }
  }
  expect_failures = [var.nodes]
}

run "refuses_data_on_a_worker" {
  command = plan
  variables {
    nodes = {
      a = { docker_host = "unix:///a", address = "10.0.0.11", role = "manager", labels = { "friday.state" = "here" } }
      b = { docker_host = "unix:///b", address = "10.0.0.12", role = "worker", labels = { "friday.state" = "here" } }
    }
  }
  expect_failures = [var.nodes]
}

run "refuses_images_of_unknown_parts" {
  command = plan
  variables {
    images = { workr = "worker:v1" }
  }
  expect_failures = [var.images]
}

run "refuses_a_pipeline_without_its_worker" {
  command = plan
  variables {
    parts        = ["pipeline"]
    service_file = "../../../swarm/friday.yml"
  }
  expect_failures = [var.parts]
}

run "refuses_to_release_what_is_not_there" {
  command = plan
  variables {
    parts = ["agent"]
  }
  expect_failures = [var.service_file]
}

run "refuses_a_service_file_that_is_missing" {
  command = plan
  variables {
    service_file = "no/friday.yml"
  }
  expect_failures = [var.service_file]
}

run "refuses_two_listeners_on_one_port" {
  command = plan
  variables {
    board_port = 8080
  }
  expect_failures = [var.board_port]
}

run "refuses_other_values_out_of_range" {
  command = plan
  variables {
    secrets_folder = " "
    port           = 0
    tweets_rate    = 0
    tweets_from    = "mastodon"
    docker_socket  = "docker.sock"
    resolve_images = "sometimes"
    wait_seconds   = 1
  }
  expect_failures = [var.secrets_folder, var.port, var.tweets_rate, var.tweets_from, var.docker_socket, var.resolve_images, var.wait_seconds]
}

# What the module refuses before it touches an engine, and what it plans. Nothing is applied here: no engine is asked.

variables {
  hosts = {
    a = { docker_host = "unix:///var/run/docker.sock", advertise_address = "10.0.0.11", role = "manager", labels = { "friday.state" = "here" } }
    b = { docker_host = "ssh://root@10.0.0.12", advertise_address = "10.0.0.12", role = "manager" }
    c = { docker_host = "ssh://root@c.example.org:2222", advertise_address = "fd00::13", role = "manager" }
    d = { docker_host = "ssh://d.example.org", advertise_address = "10.0.0.14" }
  }
}

run "plans_hosts_swarm_and_nodes" {
  command = plan

  assert {
    condition     = length(terraform_data.host) == 4
    error_message = "each host is to be read in the plan"
  }
  assert {
    condition     = output.nodes["d"].role == "worker" && output.nodes["d"].address == "10.0.0.14"
    error_message = "a host without a role is a worker"
  }
  assert {
    condition     = output.docker_host == "unix:///var/run/docker.sock"
    error_message = "the first manager is the one that takes orders"
  }
  assert {
    condition     = strcontains(terraform_data.swarm.input.hosts, "a|manager|unix:///var/run/docker.sock|10.0.0.11|friday.state=here")
    error_message = "the script gets a line for each host"
  }
  assert {
    condition     = !strcontains(jsonencode(terraform_data.swarm.input), "SWMTKN")
    error_message = "no token is in the state"
  }
}

run "an_even_number_of_managers_is_a_warning" {
  command = plan
  variables {
    hosts = {
      a = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager" }
      b = { docker_host = "unix:///b", advertise_address = "10.0.0.12", role = "manager" }
    }
  }
  expect_failures = [check.number_of_managers]
}

run "refuses_a_swarm_without_a_manager" {
  command = plan
  variables {
    hosts = { a = { docker_host = "unix:///a", advertise_address = "10.0.0.11" } }
  }
  expect_failures = [var.hosts]
}

run "refuses_other_ways_to_an_engine" {
  command = plan
  variables {
    hosts = { a = { docker_host = "tcp://10.0.0.11:2375", advertise_address = "10.0.0.11", role = "manager" } }
  }
  expect_failures = [var.hosts]
}

run "refuses_an_address_that_is_none" {
  command = plan
  variables {
    hosts = { a = { docker_host = "unix:///a", advertise_address = "eth0", role = "manager" } }
  }
  expect_failures = [var.hosts]
}

run "refuses_one_engine_as_two_nodes" {
  command = plan
  variables {
    hosts = {
      a = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager" }
      b = { docker_host = "unix:///a", advertise_address = "10.0.0.12" }
    }
  }
  expect_failures = [var.hosts]
}

run "refuses_one_address_for_two_nodes" {
  command = plan
  variables {
    hosts = {
      a = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager" }
      b = { docker_host = "unix:///b", advertise_address = "10.0.0.11" }
    }
  }
  expect_failures = [var.hosts]
}

run "refuses_an_unknown_role" {
  command = plan
  variables {
    hosts = {
      a = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager" }
      b = { docker_host = "unix:///b", advertise_address = "10.0.0.12", role = "leader" }
    }
  }
  expect_failures = [var.hosts]
}

run "refuses_a_name_that_scripts_would_trip_over" {
  command = plan
  variables {
    hosts = { "a|b" = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager" } }
  }
  expect_failures = [var.hosts]
}

run "refuses_labels_that_scripts_would_trip_over" {
  command = plan
  variables {
    hosts = { a = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager", labels = { rack = "one, two" } } }
  }
  expect_failures = [var.hosts]
}

run "refuses_labels_of_its_own" {
  command = plan
  variables {
    hosts = { a = { docker_host = "unix:///a", advertise_address = "10.0.0.11", role = "manager", labels = { "friday.host" = "x" } } }
  }
  expect_failures = [var.hosts]
}

run "refuses_other_values_out_of_range" {
  command = plan
  variables {
    name          = "My Swarm"
    heartbeat     = "1s"
    wait_seconds  = 1
    drain_seconds = 10.5
  }
  expect_failures = [var.name, var.heartbeat, var.wait_seconds, var.drain_seconds]
}

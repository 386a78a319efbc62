//! What the canary of a service would be, by the very function that makes it.

use rollout::Release;
use serde::Serialize;
use serde_json::Value;

use super::model::Service;
use super::spec;

/// What of a service its canary does not have, and what it shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// The canary's name.
    pub name: String,
    /// Labels of the service that it does not have.
    pub labels_left_out: Vec<String>,
    /// Whether ports that the service publishes are left out.
    pub ports_left_out: bool,
    /// Names by which the service is found in its networks, and the canary is not.
    pub aliases_left_out: Vec<String>,
    /// Where both write to the same data: named volumes and folders of nodes, each as `SOURCE at TARGET`.
    pub shared_data: Vec<String>,
    /// Labels that are written to the service itself when a release is promoted.
    pub labels_written: Vec<String>,
}

/// The canary of a service with this spec.
pub(super) fn preview(stable: &Value) -> Preview {
    let service = Service::removed(stable.clone());
    let digest = format!("sha256:{}", "0".repeat(64));
    let release = Release::new("image", digest.clone(), Some("commit".to_owned()));
    let of = spec::name(stable).parse();
    let name = of
        .as_ref()
        .map(|of| spec::canary_name(of).unwrap_or_else(|_| format!("{of}-canary")));
    let (Ok(of), Ok(name)) = (&of, name) else {
        // Swarm takes no other names than we do.
        return Preview {
            name: String::new(),
            labels_left_out: Vec::new(),
            ports_left_out: false,
            aliases_left_out: Vec::new(),
            shared_data: Vec::new(),
            labels_written: Vec::new(),
        };
    };
    let canary = spec::canary(&service, &name, of, &release, &digest, 1, 1);
    let promoted = spec::with_release(stable, &release, &digest, 1);
    let aliases = |spec: &Value| -> Vec<String> {
        let places = ["/TaskTemplate/Networks", "/Networks"];
        let lists = places
            .into_iter()
            .filter_map(|place| spec.pointer(place)?.as_array());
        let aliases = lists
            .flatten()
            .filter_map(|network| network["Aliases"].as_array());
        let names = aliases.flatten().filter_map(Value::as_str);
        names.map(str::to_owned).collect()
    };
    Preview {
        name,
        labels_left_out: missing(labels(stable), &labels(&canary)),
        ports_left_out: has_ports(stable) && !has_ports(&canary),
        aliases_left_out: missing(aliases(stable), &aliases(&canary)),
        shared_data: shared(&canary),
        labels_written: missing(labels(&promoted), &labels(stable)),
    }
}

fn labels(spec: &Value) -> Vec<String> {
    let labels = spec["Labels"].as_object();
    labels.map_or_else(Vec::new, |labels| labels.keys().cloned().collect())
}

fn missing(all: Vec<String>, there: &[String]) -> Vec<String> {
    let mut missing: Vec<String> = all
        .into_iter()
        .filter(|name| !there.contains(name))
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

fn has_ports(spec: &Value) -> bool {
    let ports = spec["EndpointSpec"]["Ports"].as_array();
    ports.is_some_and(|ports| !ports.is_empty())
}

fn shared(spec: &Value) -> Vec<String> {
    let mounts = spec["TaskTemplate"]["ContainerSpec"]["Mounts"].as_array();
    let shared = |mount: &Value| {
        let is_data = matches!(mount["Type"].as_str(), Some("bind" | "volume"))
            && mount["ReadOnly"].as_bool() != Some(true);
        let source = mount["Source"].as_str().filter(|source| !source.is_empty());
        let target = mount["Target"].as_str()?;
        // A volume without a name is each task's own.
        is_data
            .then(|| format!("{} at {target}", source.unwrap_or_default()))
            .filter(|_| source.is_some())
    };
    mounts.into_iter().flatten().filter_map(shared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tells_what_the_clone_leaves_out_and_what_it_shares() {
        let stable = json!({
            "Name": "shop_web",
            "Labels": { "team": "a", "com.docker.stack.namespace": "shop", "traefik.enable": "true" },
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "web:1",
                    "Mounts": [
                        { "Type": "volume", "Source": "data", "Target": "/data" },
                        { "Type": "volume", "Target": "/own" },
                        { "Type": "bind", "Source": "/etc/x", "Target": "/x", "ReadOnly": true },
                        { "Type": "tmpfs", "Target": "/tmp" },
                    ],
                },
                "Networks": [{ "Target": "net", "Aliases": ["web"] }],
            },
            "Mode": { "Replicated": { "Replicas": 2 } },
            "EndpointSpec": { "Mode": "dnsrr", "Ports": [{ "TargetPort": 80, "PublishedPort": 80 }] },
        });
        let expected = Preview {
            name: "shop_web-canary".to_owned(),
            labels_left_out: vec![
                "com.docker.stack.namespace".to_owned(),
                "traefik.enable".to_owned(),
            ],
            ports_left_out: true,
            aliases_left_out: vec!["web".to_owned()],
            shared_data: vec!["data at /data".to_owned()],
            labels_written: ["commit", "digest", "image", "term"]
                .map(|label| format!("friday.{label}"))
                .to_vec(),
        };
        assert_eq!(preview(&stable), expected);
    }
}

//! Service specs, pure: what is read of the user's, the canary's copy of it, and the few fields that a promotion writes.
//!
//! A spec stays the engine's own JSON, so that what is unknown here survives. Of the stable service exactly these are
//! ours: the image, one container label and a few service labels. So the release that was good before is enough to go
//! back, and it is in our store; the engine's PreviousSpec, which any update overwrites, is never needed.

use rollout::{Release, ReleaseId, ServiceName};
use serde_json::{Map, Value, json};

use super::image::Reference;
use super::model::Service;
use crate::orchestrator::OrchestratorError;

/// What follows a service's name in its canary's.
const SUFFIX: &str = "-canary";

/// Longest name that Swarm takes.
const NAME_CHARS_MAX: usize = 63;

/// On a canary service: whose clone it is.
pub(super) const CANARY_OF: &str = "friday.canary-of";

/// On either service: the image as its author wrote it.
const IMAGE: &str = "friday.image";

/// On either service: the digest that the labels are about. They count only while the spec runs it.
const DIGEST: &str = "friday.digest";

/// On either service: the commit that the image was built from.
const COMMIT: &str = "friday.commit";

/// On either service: the term of the controller that wrote last.
const TERM: &str = "friday.term";

/// On containers: the release they run, for whoever watches containers.
pub(crate) const RELEASE: &str = "friday.release";

/// On containers of a canary service: whose clone it is, for the same.
pub(crate) const SERVICE: &str = "friday.service";

/// What `docker stack` takes for its own.
const STACK: &str = "com.docker.stack.namespace";

/// How labels begin by which another proxy in the swarm finds services to send requests to: Traefik, Docker Flow Proxy and
/// Caddy. A clone with them would get users past ours.
const PROXIES: [&str; 3] = ["traefik.", "com.df.", "caddy"];

/// The name of a service's canary.
pub(super) fn canary_name(service: &ServiceName) -> Result<String, OrchestratorError> {
    let name = format!("{service}{SUFFIX}");
    if name.len() > NAME_CHARS_MAX {
        return Err(OrchestratorError::Refused {
            what: format!("a canary of {service}"),
            reason: format!(
                "its name, {name:?}, would have {} characters and Swarm takes {NAME_CHARS_MAX}: give the service a shorter one",
                name.len()
            ),
        });
    }
    Ok(name)
}

/// The name of a service.
pub(super) fn name(spec: &Value) -> &str {
    spec["Name"].as_str().unwrap_or_default()
}

/// Whether a service is a canary of ours: of this one, or of any.
pub(super) fn is_canary(spec: &Value, of: Option<&ServiceName>) -> bool {
    let label = label(spec, CANARY_OF);
    match of {
        Some(service) => label == Some(service.as_str()),
        None => label.is_some(),
    }
}

/// The image of its tasks, as the spec has it.
pub(super) fn image(spec: &Value) -> &str {
    spec["TaskTemplate"]["ContainerSpec"]["Image"]
        .as_str()
        .unwrap_or_default()
}

/// How many tasks it wants; `None` for one that runs on every node.
pub(super) fn replicas(spec: &Value) -> Option<u32> {
    let replicated = spec["Mode"].get("Replicated")?;
    // The engine leaves out zeros.
    let replicas = replicated["Replicas"].as_u64().unwrap_or(0);
    Some(u32::try_from(replicas).unwrap_or(u32::MAX))
}

/// The term of the controller that wrote it last; 0 if none of ours did.
pub(super) fn term(spec: &Value) -> u64 {
    label(spec, TERM)
        .and_then(|term| term.parse().ok())
        .unwrap_or(0)
}

/// The release that a spec runs: by our labels if they are about its image, else by the image alone. `digest` is that
/// of an image which the spec names without one.
pub(super) fn release(
    spec: &Value,
    digest: impl FnOnce(&str) -> Option<String>,
) -> Option<Release> {
    let written = image(spec);
    let reference = Reference::parse(written)?;
    let digest = reference.digest.clone().or_else(|| digest(written))?;
    if label(spec, DIGEST) == Some(&digest)
        && let Some(image) = label(spec, IMAGE)
    {
        let commit = label(spec, COMMIT).map(str::to_owned);
        return Some(Release::new(image, digest, commit));
    }
    let image = if reference.name.is_empty() {
        written.to_owned()
    } else {
        reference.name
    };
    Some(Release::new(image, digest, None))
}

/// Whether an image is named without its digest.
pub(super) fn is_floating(written: &str) -> bool {
    Reference::parse(written).is_some_and(|reference| reference.digest.is_none())
}

/// The release of a task, by the image in its own spec.
pub(super) fn release_of_image(
    written: &str,
    digest: impl FnOnce(&str) -> Option<String>,
) -> Option<ReleaseId> {
    let reference = Reference::parse(written)?;
    let digest = reference.digest.or_else(|| digest(written))?;
    Some(ReleaseId::of_digest(&digest))
}

/// The spec of a canary: the stable service's, with another image, its own name and replica count, and without what
/// would bring it requests past the proxy or put it under somebody else's rule:
/// - published ports: they are taken, and the ingress would send it users;
/// - aliases in networks: the service's users would find it by name;
/// - the stack's label: `docker stack deploy --prune` would remove it in the middle of a rollout;
/// - labels of other proxies: they would take it for one more of the service's tasks.
pub(super) fn canary(
    stable: &Service,
    name: &str,
    of: &ServiceName,
    release: &Release,
    pinned: &str,
    replicas: u32,
    term: u64,
) -> Value {
    let mut spec = stable.spec.clone();
    spec["Name"] = json!(name);
    spec["Mode"] = json!({ "Replicated": { "Replicas": replicas } });
    // Our own deadline judges it. Replacing one canary by another starts at once, with all its tasks: it serves nobody.
    spec["UpdateConfig"] =
        json!({ "Parallelism": 0, "FailureAction": "continue", "Order": "stop-first" });
    if let Some(endpoint) = spec["EndpointSpec"].as_object_mut() {
        endpoint.remove("Ports");
    }
    // The second is where networks stood before they were a part of the task template.
    for path in ["/TaskTemplate/Networks", "/Networks"] {
        let networks = spec.pointer_mut(path).and_then(Value::as_array_mut);
        for network in networks.into_iter().flatten() {
            if let Some(network) = network.as_object_mut() {
                network.remove("Aliases");
            }
        }
    }
    let labels = object(&mut spec["Labels"]);
    labels.remove(STACK);
    labels.retain(|name, _| !PROXIES.iter().any(|begin| name.starts_with(begin)));
    labels.insert(CANARY_OF.to_owned(), json!(of));
    let containers = object(&mut spec["TaskTemplate"]["ContainerSpec"]["Labels"]);
    containers.insert(SERVICE.to_owned(), json!(of));
    run(&mut spec, release, pinned, term);
    spec
}

/// The same spec with another release.
pub(super) fn with_release(spec: &Value, release: &Release, pinned: &str, term: u64) -> Value {
    let mut spec = spec.clone();
    run(&mut spec, release, pinned, term);
    spec
}

/// The same canary with another number of tasks: those that stay are not restarted.
pub(super) fn with_replicas(spec: &Value, replicas: u32, term: u64) -> Value {
    let mut spec = with_term(spec, term);
    spec["Mode"] = json!({ "Replicated": { "Replicas": replicas } });
    spec
}

/// The same spec with another number of tasks, unless it runs on every node.
pub(super) fn scaled_to(spec: &Value, count: u32) -> Value {
    let mut spec = spec.clone();
    if replicas(&spec).is_some() {
        spec["Mode"] = json!({ "Replicated": { "Replicas": count } });
    }
    spec
}

/// The same spec under the present controller's term, and nothing else: no task is restarted for it.
pub(super) fn with_term(spec: &Value, term: u64) -> Value {
    let mut spec = spec.clone();
    object(&mut spec["Labels"]).insert(TERM.to_owned(), json!(term.to_string()));
    spec
}

fn run(spec: &mut Value, release: &Release, pinned: &str, term: u64) {
    let labels = object(&mut spec["Labels"]);
    labels.insert(IMAGE.to_owned(), json!(release.image));
    labels.insert(DIGEST.to_owned(), json!(release.digest));
    labels.insert(TERM.to_owned(), json!(term.to_string()));
    match &release.commit {
        Some(commit) => labels.insert(COMMIT.to_owned(), json!(commit)),
        None => labels.remove(COMMIT),
    };
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Image"] = json!(pinned);
    object(&mut container["Labels"]).insert(RELEASE.to_owned(), json!(release.id));
}

fn label<'a>(spec: &'a Value, name: &str) -> Option<&'a str> {
    spec["Labels"].get(name)?.as_str()
}

/// The map at a place; the engine writes `null` for an empty one, or leaves it out.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::swarm::model::Version;

    fn service(spec: Value) -> Service {
        Service {
            id: "id".to_owned(),
            version: Version { index: 7 },
            spec,
            update_status: None,
        }
    }

    fn worker() -> Value {
        json!({
            "Name": "worker",
            "Labels": {
                "team": "a",
                STACK: "app",
                "traefik.http.routers.worker.rule": "Host(`worker.example.org`)",
                "caddy_0": "worker.example.org",
            },
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "worker:v1",
                    "Healthcheck": { "Test": ["CMD", "/worker", "check"] },
                    "Isolation": "default",
                    "NotKnownHere": 1,
                },
                "Networks": [{ "Target": "net", "Aliases": ["worker"] }],
                "Placement": { "Constraints": ["node.role==worker"] },
            },
            "Mode": { "Global": {} },
            "UpdateConfig": { "Order": "start-first", "FailureAction": "rollback" },
            "EndpointSpec": { "Mode": "dnsrr", "Ports": [{ "PublishedPort": 80 }] },
        })
    }

    fn release(digit: &str) -> Release {
        let digest = format!("sha256:{}", digit.repeat(64));
        Release::new("worker:v2", digest, Some("abc".to_owned()))
    }

    #[test]
    fn a_canary_is_the_users_own_service_but_for_what_would_bring_it_requests_past_the_proxy() {
        let next = release("2");
        let of: ServiceName = "worker".parse().unwrap();
        let spec = canary(
            &service(worker()),
            "worker-canary",
            &of,
            &next,
            "worker:v2@sha256:2",
            3,
            9,
        );
        insta::assert_json_snapshot!(spec);
        assert!(is_canary(&spec, Some(&of)) && is_canary(&spec, None));
        assert_eq!((replicas(&spec), term(&spec)), (Some(3), 9));
    }

    #[test]
    fn a_promotion_writes_the_image_and_our_labels_and_nothing_else() {
        let next = release("2");
        let before = worker();
        let mut after = with_release(&before, &next, &format!("worker:v2@{}", next.digest), 9);
        assert_eq!(super::release(&after, |_| None), Some(next));
        after["Labels"] = before["Labels"].clone();
        after["TaskTemplate"]["ContainerSpec"]["Image"] = json!("worker:v1");
        let container = after["TaskTemplate"]["ContainerSpec"].as_object_mut();
        container.unwrap().remove("Labels");
        assert_eq!(after, before);
    }

    #[test]
    fn f34_labels_are_believed_only_while_they_are_about_the_image_that_runs() {
        let next = release("2");
        let mut spec = with_release(&worker(), &next, &format!("worker:v2@{}", next.digest), 9);
        let other = format!("sha256:{}", "3".repeat(64));
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(format!("worker:v2@{other}"));
        let read = super::release(&spec, |_| None);
        assert_eq!(read, Some(Release::new("worker:v2", other, None)));
    }

    #[test]
    fn an_image_without_a_digest_is_the_release_that_its_tag_means_here() {
        let digest = release("1").digest;
        let read = super::release(&worker(), |image| {
            assert_eq!(image, "worker:v1");
            Some(digest.clone())
        });
        assert_eq!(read, Some(Release::new("worker:v1", digest, None)));
        assert_eq!(super::release(&worker(), |_| None), None);
    }

    #[test]
    fn a_name_that_leaves_no_room_is_refused() {
        let long: ServiceName = "a".repeat(57).parse().unwrap();
        assert!(canary_name(&long).is_err());
        let fits: ServiceName = "a".repeat(56).parse().unwrap();
        assert_eq!(canary_name(&fits).unwrap().len(), 63);
    }
}

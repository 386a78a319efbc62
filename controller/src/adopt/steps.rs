//! What there is to do before the first release, in an order in which no user is cut off, and what Friday does by itself.

use serde::Serialize;

use super::{Subject, tasks};
use crate::orchestrator::swarm::{Found, Network, Preview};
use crate::stack::image::missing;
use crate::stack::running::{Fault, Published};

/// Who does a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The service's owner, before users come by the proxy.
    YouFirst,
    /// The owner, to bring users to the proxy.
    YouTraffic,
    /// Friday, at each release.
    Friday,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Who does it.
    pub who: Who,
    /// What it is about, and why.
    pub what: String,
    /// What to type, or what to do; `null` where Friday does it.
    pub how: Option<String>,
}

fn step(who: Who, what: impl Into<String>, how: impl Into<String>) -> Step {
    Step {
        who,
        what: what.into(),
        how: Some(how.into()),
    }
}

fn of_fault(who: Who, fault: Fault) -> Step {
    let shown = fault.value.map(|value| format!(" {value}"));
    let what = format!("{}{}: {}", fault.key, shown.unwrap_or_default(), fault.why);
    step(who, what, fault.mend)
}

/// All steps.
pub(super) fn steps(
    subject: &Subject<'_>,
    faults: Vec<Fault>,
    ports: &[Published],
    labels_of_proxies: &[&str],
    replicas: u32,
) -> Vec<Step> {
    let name = subject.service.name();
    let preview = subject.service.preview();
    let (later, now): (Vec<Fault>, Vec<Fault>) =
        faults.into_iter().partition(|fault| fault.waits_for_proxy);

    let mut steps = Vec::new();
    steps.extend(image(subject));
    steps.extend(now.into_iter().map(|fault| of_fault(Who::YouFirst, fault)));
    let (network, shared) = network(subject);
    steps.extend(network);
    if !preview.shared_data.is_empty() {
        let what = format!(
            "its canary writes to the same data as it does: {}",
            preview.shared_data.join(", ")
        );
        let how = "make sure that two releases may do so at once, or keep the data elsewhere";
        steps.push(step(Who::YouFirst, what, how));
    }
    steps.push(step(
        Who::YouFirst,
        "friday.yml: what was guessed, and what it is worth at your traffic",
        "look at each Check in it; friday lint friday.yml; friday plan -f friday.yml --rps YOUR_REQUESTS_A_SECOND",
    ));

    let serve = match &shared {
        Some(network) => format!(
            "friday serve --orchestrator swarm --network {network} --service friday.yml (swarm/stack.yml shows how as a service); friday-proxy beside it"
        ),
        None => "friday serve --orchestrator swarm --service friday.yml, and a friday-proxy on the same network".to_owned(),
    };
    steps.push(step(
        Who::YouTraffic,
        "controller and proxy get to know the service: nothing of it changes yet",
        serve,
    ));
    steps.extend(traffic(name, ports, labels_of_proxies, &preview));
    let behind: Vec<Step> = later
        .into_iter()
        .map(|fault| of_fault(Who::YouTraffic, fault))
        .collect();
    for port in ports {
        // What another step removes is not removed twice.
        let remove = format!("--publish-rm {} ", port.removal());
        let is_done = behind
            .iter()
            .any(|step| step.how.as_ref().is_some_and(|how| how.contains(&remove)));
        if !is_done {
            let what = format!("{} stays open and leads past the proxy", shown(port));
            let how = format!("docker service update {remove}{name}");
            steps.push(step(Who::YouTraffic, what, how));
        }
    }
    steps.extend(behind);
    steps.push(step(
        Who::YouTraffic,
        "the first release",
        format!(
            "friday deploy -f friday.yml --image {}:NEXT --wait",
            repository(subject.service.image())
        ),
    ));
    steps.extend(by_itself(subject, &preview, replicas));
    steps
}

/// Whether every node gets the image.
fn image(subject: &Subject<'_>) -> Option<Step> {
    let image = subject.service.image();
    let (what, how) = missing(image, subject.holder)?;
    Some(step(Who::YouFirst, format!("{image}: {what}"), how))
}

/// What is to be done so that the proxy reaches its tasks, and the network on which it does.
fn network(subject: &Subject<'_>) -> (Vec<Step>, Option<String>) {
    let name = subject.service.name();
    let known = |service: &Found| -> Vec<&Network> {
        let attached = service.networks();
        let is_on = |network: &&Network| {
            attached.contains(&network.id.as_str()) || attached.contains(&network.name.as_str())
        };
        let networks = subject.networks.iter().filter(is_on);
        networks
            .filter(|network| network.driver == "overlay" && !network.ingress)
            .collect()
    };
    let own = known(subject.service);
    let proxy = subject
        .others
        .iter()
        .find(|other| repository(other.image()).rsplit('/').next() == Some("friday-proxy"));
    let of_proxy = proxy.map(|proxy| (proxy.name(), known(proxy)));
    let names = |networks: &[&Network]| -> String {
        let names: Vec<&str> = networks
            .iter()
            .map(|network| network.name.as_str())
            .collect();
        names.join(", ")
    };
    let attach = |network: &str| format!("docker service update --network-add {network} {name}");
    match of_proxy {
        Some((proxy, of_proxy)) => {
            let shared = own.iter().find(|network| of_proxy.contains(network));
            if let Some(shared) = shared {
                return (Vec::new(), Some(shared.name.clone()));
            }
            let what = format!(
                "it shares no network with the proxy, the service {proxy}, which is on {}",
                if of_proxy.is_empty() {
                    "none".to_owned()
                } else {
                    names(&of_proxy)
                }
            );
            let first = of_proxy.first().map(|network| network.name.clone());
            let how = attach(first.as_deref().unwrap_or("NETWORK"));
            (vec![step(Who::YouFirst, what, how)], first)
        }
        None => match own[..] {
            [] => {
                let what = "it is on no overlay network: proxy and controller reach tasks at their addresses there";
                let how = format!(
                    "docker network create --driver overlay --attachable mesh; {}",
                    attach("mesh")
                );
                (
                    vec![step(Who::YouFirst, what, how)],
                    Some("mesh".to_owned()),
                )
            }
            [network] => (Vec::new(), Some(network.name.clone())),
            _ => {
                let what = format!("it is on several networks ({})", names(&own));
                let how =
                    "choose the one that proxy and controller are on, for friday serve --network";
                (vec![step(Who::YouFirst, what, how)], None)
            }
        },
    }
}

/// What leads users past the proxy, and where they go instead.
fn traffic(
    name: &str,
    ports: &[Published],
    labels_of_proxies: &[&str],
    preview: &Preview,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let callers = if preview.aliases_left_out.is_empty() {
        format!("the name {name}")
    } else {
        format!("the names {name}, {}", preview.aliases_left_out.join(", "))
    };
    if !labels_of_proxies.is_empty() {
        let what = format!(
            "another proxy sends it requests past ours, by its labels: {}",
            labels_of_proxies.join(", ")
        );
        let how = "give the labels to the service of friday-proxy, with its port; then docker service update --label-rm each of them here";
        steps.push(step(Who::YouTraffic, what, how));
    }
    let (tcp, other): (Vec<&Published>, Vec<&Published>) =
        ports.iter().partition(|port| port.protocol == "tcp");
    for port in other {
        let what = format!("the proxy passes no {} on: {}", port.protocol, shown(port));
        let how = "give that port to a service of its own, before it is taken from this one";
        steps.push(step(Who::YouTraffic, what, how));
    }
    if !tcp.is_empty() {
        let shown: Vec<String> = tcp.into_iter().map(shown).collect();
        let what = format!(
            "users come by {}: of what goes past the proxy nothing is shared with a canary or judged",
            shown.join(", ")
        );
        let how = "send them to the proxy's port instead (DNS, load balancer); a port of a node is one service's, so the proxy gets another one, or this one once it is free";
        steps.push(step(Who::YouTraffic, what, how));
    }
    steps.push(step(
        Who::YouTraffic,
        format!("other services that call it by {callers} go past the proxy too"),
        "give them the proxy's address instead",
    ));
    steps
}

/// A port in words.
fn shown(port: &Published) -> String {
    let Published {
        target,
        published,
        is_host,
        protocol,
    } = port;
    let nodes = if *is_host {
        "its task's node"
    } else {
        "every node"
    };
    let published =
        published.map_or_else(|| "a free port".to_owned(), |port| format!("port {port}"));
    format!("{published} of {nodes} ({protocol}, to {target})")
}

/// What happens at each release.
fn by_itself(subject: &Subject<'_>, preview: &Preview, replicas: u32) -> Vec<Step> {
    let mut said = Vec::new();
    let full = replicas.max(1);
    said.push(format!(
        "makes {}, a clone of the service with the new image and up to {} of its own, and removes it in the end: nodes need room for both",
        preview.name,
        tasks(full)
    ));
    let mut left_out = Vec::new();
    if preview.ports_left_out {
        left_out.push("published ports".to_owned());
    }
    if !preview.aliases_left_out.is_empty() {
        left_out.push(format!("aliases ({})", preview.aliases_left_out.join(", ")));
    }
    if !preview.labels_left_out.is_empty() {
        left_out.push(format!("labels ({})", preview.labels_left_out.join(", ")));
    }
    if left_out.is_empty() {
        said.push(
            "leaves nothing of the service out of that clone; its update settings are its own"
                .to_owned(),
        );
    } else {
        said.push(format!(
            "leaves out of that clone what would get it requests past the proxy: {}",
            left_out.join(", ")
        ));
    }
    said.push(
        "asks each task the ready check before it gets any request, and gives the canary no more than its ready tasks can carry"
            .to_owned(),
    );
    let image = subject.service.image();
    let pinned = if image.contains('@') {
        "pinned by its digest, as the present one is"
    } else {
        "pinned by its digest; the present one is not, and counts as what its tag means on this engine"
    };
    said.push(format!(
        "changes of the service itself the image, {pinned}, and the labels {}, once a release is promoted; nothing else, ever",
        preview.labels_written.join(", ")
    ));
    said.into_iter()
        .map(|what| Step {
            who: Who::Friday,
            what,
            how: None,
        })
        .collect()
}

/// An image without its tag and digest.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].find(':') {
        Some(colon) => &name[..last + colon],
        None => name,
    }
}

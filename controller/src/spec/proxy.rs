//! `proxy`: how requests are passed on.

use rollout::proxy::{ProxySpec, TaskProtocol, TaskTls};
use rollout::{Duration, Weight};

use crate::yaml::{Fields, Findings, Value};

/// Longest wait that makes sense in front of a person or a client: their own patience ends sooner.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

/// Longest path of a file, in bytes, and longest name of a host.
const PATH_BYTES_MAX: usize = 4_096;
const NAME_BYTES_MAX: usize = 253;

/// Reads `proxy`; what it does not say, or says wrongly, stays as it is by default.
pub(super) fn proxy(value: Value<'_>, findings: &mut Findings) -> ProxySpec {
    let mut read = ProxySpec::default();
    let expected = "a map like { mirror: 5%, protocol: http1, connect: 1s, answer: 10s }";
    let Some(mut fields) = value.map(expected, findings) else {
        return read;
    };
    if let Some(value) = fields.take("mirror") {
        let expected = "a share from 0% to 100%, in steps of 0.01%, such as 5%";
        let share = value.scalar(expected, findings, |text| text.parse::<Weight>().ok());
        read.mirror = share.unwrap_or(read.mirror);
    }
    if let Some(value) = fields.take("protocol") {
        let protocol = value.scalar("http1 or h2", findings, |text| match text {
            "http1" => Some(TaskProtocol::Http1),
            "h2" => Some(TaskProtocol::H2),
            _ => None,
        });
        read.protocol = protocol.unwrap_or(read.protocol);
    }
    read.tls = fields.take("tls").and_then(|value| tls(value, findings));
    for (key, wait) in [("connect", &mut read.connect), ("answer", &mut read.answer)] {
        let given = fields.duration(key, *wait, findings);
        if given.value == Duration::ZERO || given.value > WAIT_MAX {
            findings.at(
                given.at.unwrap_or_default(),
                &given.key,
                Some(given.shown),
                "expected more than 0s and at most 1h".to_owned(),
            );
        } else {
            *wait = given.value;
        }
    }
    fields.finish(findings);
    read
}

fn tls(value: Value<'_>, findings: &mut Findings) -> Option<TaskTls> {
    let expected = "a map like { server_name: web.internal, ca_file: /run/secrets/ca.pem }";
    let (at, key) = (value.at(), value.key().to_owned());
    let mut fields = value.map(expected, findings)?;
    let name = "the name that the certificates of tasks are for, such as web.internal";
    let server_name = fields.required("server_name", name, findings);
    let server_name = server_name.and_then(|value| {
        value.text(name, findings, |text| {
            let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
            let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_name);
            fits.then(|| text.to_owned())
        })
    });
    let ca = "the proxy's path of the certificates that may sign those of tasks";
    let ca_file = fields.required("ca_file", ca, findings);
    let ca_file = ca_file.and_then(|value| path(&value, findings));
    let mut optional = |fields: &mut Fields<'_>, key| {
        let value = fields.take(key);
        value.and_then(|value| path(&value, findings))
    };
    let certificate_file = optional(&mut fields, "certificate_file");
    let key_file = optional(&mut fields, "key_file");
    fields.finish(findings);
    if certificate_file.is_some() != key_file.is_some() {
        let expected = "expected certificate_file and key_file, or neither".to_owned();
        findings.at(at, &key, None, expected);
    }
    Some(TaskTls {
        server_name: server_name?,
        ca_file: ca_file?,
        certificate_file,
        key_file,
    })
}

fn path(value: &Value<'_>, findings: &mut Findings) -> Option<String> {
    let expected = "an absolute path, such as /run/secrets/ca.pem";
    value.text(expected, findings, |text| {
        (text.starts_with('/') && text.len() <= PATH_BYTES_MAX).then(|| text.to_owned())
    })
}

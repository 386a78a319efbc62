//! `notify`: who is told how a release goes.

use std::collections::BTreeSet;

use reqwest::Url;
use rollout::{AlertNotice, GitlabNotice, Notify, WebhookNotice};

use crate::client::transport::is_loopback;
use crate::yaml::{Findings, Value};

/// What `gitlab: true` means, and what a map leaves on that does not say otherwise: what every release wants, and what
/// changes nothing outside of it.
const GITLAB: [GitlabNotice; 3] = [
    GitlabNotice::Status,
    GitlabNotice::Note,
    GitlabNotice::Deployment,
];

/// Longest path of a file, in bytes.
const PATH_BYTES_MAX: usize = 4_096;

/// Longest address, in bytes: what servers commonly take.
const URL_BYTES_MAX: usize = 2_048;

/// Reads `notify`; who is named wrongly is not told.
pub(super) fn notify(value: Value<'_>, findings: &mut Findings) -> Notify {
    let mut read = Notify::default();
    let expected = "a map like { gitlab: true, slack: { url_file: slack-url } }";
    let Some(mut fields) = value.map(expected, findings) else {
        return read;
    };
    if let Some(value) = fields.take("gitlab") {
        gitlab(value, &mut read, findings);
    }
    if let Some(value) = fields.take("slack") {
        let expected = "a map like { url_file: slack-url }";
        if let Some(mut slack) = value.map(expected, findings) {
            let file = slack.required("url_file", URL_FILE, findings);
            read.slack_url_file = file.and_then(|value| path(&value, findings));
            slack.finish(findings);
        }
    }
    if let Some(value) = fields.take("webhook") {
        read.webhook = webhook(value, findings);
    }
    fields.finish(findings);
    read
}

const URL_FILE: &str =
    "the name of a file in the controller's --secrets-dir that holds the address";
const KEY_FILE: &str = "the name of a file in the controller's --secrets-dir that holds the key";

fn gitlab(value: Value<'_>, read: &mut Notify, findings: &mut Findings) {
    let expected = "true, false, or a map like { ticket: true }";
    if !value.is_map() {
        let all = value.scalar(expected, findings, truth);
        if all == Some(true) {
            read.gitlab = BTreeSet::from(GITLAB);
        }
        return;
    }
    let Some(mut fields) = value.map(expected, findings) else {
        return;
    };
    read.gitlab = BTreeSet::from(GITLAB);
    for (key, notice) in [
        ("status", GitlabNotice::Status),
        ("note", GitlabNotice::Note),
        ("deployment", GitlabNotice::Deployment),
        ("release", GitlabNotice::Release),
        ("ticket", GitlabNotice::Ticket),
    ] {
        let given = fields.take(key);
        match given.and_then(|value| value.scalar("true or false", findings, truth)) {
            Some(true) => {
                read.gitlab.insert(notice);
            }
            Some(false) => {
                read.gitlab.remove(&notice);
            }
            None => {}
        }
    }
    if let Some(value) = fields.take("alert") {
        let expected = "a map like { url_file: alert-url, key_file: alert-key }";
        if let Some(mut alert) = value.map(expected, findings) {
            let url_file = alert.required("url_file", URL_FILE, findings);
            let url_file = url_file.and_then(|value| path(&value, findings));
            let key_file = alert.required("key_file", KEY_FILE, findings);
            let key_file = key_file.and_then(|value| path(&value, findings));
            alert.finish(findings);
            let both = url_file.zip(key_file);
            read.alert = both.map(|(url_file, key_file)| AlertNotice { url_file, key_file });
        }
    }
    fields.finish(findings);
}

fn webhook(value: Value<'_>, findings: &mut Findings) -> Option<WebhookNotice> {
    let expected = "a map like { url: https://change.example.com/hook, secret_file: hook-key }";
    let mut fields = value.map(expected, findings)?;
    let expected = "an address at https://, or at http:// of the controller's own machine, without name and password";
    let url = fields.required("url", expected, findings);
    let url = url.and_then(|value| {
        value.text(expected, findings, |text| {
            is_address(text).then(|| text.to_owned())
        })
    });
    let secret_file = fields.required("secret_file", KEY_FILE, findings);
    let secret_file = secret_file.and_then(|value| path(&value, findings));
    fields.finish(findings);
    Some(WebhookNotice {
        url: url?,
        secret_file: secret_file?,
    })
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// Whether something may be sent there: nobody on the way reads it.
pub(crate) fn is_address(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else {
        return false;
    };
    let is_plain = url.username().is_empty() && url.password().is_none();
    let host = url.host_str().filter(|host| !host.is_empty());
    let is_safe = match url.scheme() {
        "https" => host.is_some(),
        "http" => host.is_some_and(is_loopback),
        _ => false,
    };
    text.len() <= URL_BYTES_MAX && is_plain && is_safe
}

fn path(value: &Value<'_>, findings: &mut Findings) -> Option<String> {
    let expected =
        "the name or path of a file below the controller's --secrets-dir, such as slack-url";
    value.text(expected, findings, |text| {
        let fits = (1..=PATH_BYTES_MAX).contains(&text.len()) && !text.contains('\0');
        fits.then(|| text.to_owned())
    })
}

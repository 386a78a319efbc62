//! What registries want to know: taken from Docker's own configuration, so that who may pull here may deploy.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use rollout::Duration;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time;

/// How Docker's configuration calls the registry of names that name none.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Longest wait for a credential helper.
const HELPER_MAX: Duration = Duration::from_secs(2);

/// Docker's configuration file, as far as it says who we are.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    username: String,
    secret: String,
}

/// Where what registries want to know is found.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    file: Option<PathBuf>,
}

impl Credentials {
    /// Those in a folder of Docker's: `config.json`.
    pub(super) fn of(folder: Option<PathBuf>) -> Self {
        Self {
            file: folder.map(|folder| folder.join("config.json")),
        }
    }

    /// The header for a registry; `None` where nothing is known of it. Read anew each time: tokens change.
    pub(super) async fn header(&self, registry: &str) -> Option<String> {
        let file = self.file.as_ref()?;
        let text = match tokio::fs::read(file).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "cannot read Docker's configuration: registries are asked without a login");
                return None;
            }
        };
        let configuration: Configuration = match serde_json::from_slice(&text) {
            Ok(configuration) => configuration,
            Err(error) => {
                // Its place alone: the text around it is secret.
                tracing::warn!(file = %file.display(), line = error.line(), "Docker's configuration is not as expected: registries are asked without a login");
                return None;
            }
        };
        let server = if registry == "docker.io" {
            DOCKER_HUB
        } else {
            registry
        };
        let helper = configuration
            .cred_helpers
            .get(server)
            .or(configuration.creds_store.as_ref());
        if let Some(helper) = helper
            && let Some(secret) = ask(helper, server).await
        {
            return Some(encoded(&secret, server));
        }
        let entry = configuration
            .auths
            .get(server)
            .or_else(|| configuration.auths.get(&format!("https://{server}")))?;
        of_entry(entry, server)
    }
}

fn of_entry(entry: &Entry, server: &str) -> Option<String> {
    if !entry.identitytoken.is_empty() {
        let value = json!({ "identitytoken": entry.identitytoken, "serveraddress": server });
        return Some(URL_SAFE.encode(value.to_string()));
    }
    let pair = String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok()?;
    let (username, secret) = pair.split_once(':')?;
    let secret = Secret {
        username: username.to_owned(),
        // Docker pads it so.
        secret: secret.trim_end_matches('\0').to_owned(),
    };
    Some(encoded(&secret, server))
}

fn encoded(secret: &Secret, server: &str) -> String {
    // So do helpers say that the secret is a token.
    let value = if secret.username == "<token>" {
        json!({ "identitytoken": secret.secret, "serveraddress": server })
    } else {
        json!({ "username": secret.username, "password": secret.secret, "serveraddress": server })
    };
    URL_SAFE.encode(value.to_string())
}

/// Asks `docker-credential-HELPER`; `None` if it knows nothing.
async fn ask(helper: &str, server: &str) -> Option<Secret> {
    let asking = async {
        let mut child = Command::new(format!("docker-credential-{helper}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut to) = child.stdin.take() {
            to.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    match time::timeout(HELPER_MAX, asking).await {
        Ok(Ok(answer)) if answer.status.success() => serde_json::from_slice(&answer.stdout).ok(),
        Ok(Ok(_)) => None,
        Ok(Err(error)) => {
            tracing::warn!(helper, server, %error, "cannot run docker-credential-HELPER: the registry is asked without its login");
            None
        }
        Err(_) => {
            tracing::warn!(helper, server, limit = ?HELPER_MAX, "docker-credential-HELPER did not answer in time: the registry is asked without its login");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn header(configuration: &str, registry: &str) -> Option<serde_json::Value> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), configuration).unwrap();
        let credentials = Credentials::of(Some(folder.path().to_owned()));
        let header = credentials.header(registry).await?;
        Some(serde_json::from_slice(&URL_SAFE.decode(header).unwrap()).unwrap())
    }

    #[tokio::test]
    async fn a_registry_is_told_what_docker_login_wrote_down_for_it_alone() {
        let auth = STANDARD.encode("deploy:s3cret:with:colons");
        let text = json!({ "auths": {
            "registry:5000": { "auth": auth },
            DOCKER_HUB: { "identitytoken": "token" },
        } })
        .to_string();
        assert_eq!(
            header(&text, "registry:5000").await,
            Some(
                json!({ "username": "deploy", "password": "s3cret:with:colons", "serveraddress": "registry:5000" })
            )
        );
        assert_eq!(
            header(&text, "docker.io").await,
            Some(json!({ "identitytoken": "token", "serveraddress": DOCKER_HUB }))
        );
        assert_eq!(header(&text, "elsewhere").await, None);
        assert_eq!(header("{", "elsewhere").await, None);
        assert_eq!(Credentials::of(None).header("elsewhere").await, None);
    }
}

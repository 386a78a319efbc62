//! A real Chromium, driven over WebDriver (W3C Recommendation) by the few calls that the tests of the board take. Its
//! driver speaks HTTP and JSON, as our other clients do; a library for it would bring a second HTTP stack.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use controller_testing::eventually;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::port::free_address;
use crate::scene::PATIENCE;

/// The program of Debian's package chromium-driver; it finds the Chromium that it belongs to.
const DRIVER: &str = "chromedriver";

/// Width and height of the window, in CSS pixels: a desk's and a phone's.
pub const DESK: (u32, u32) = (1280, 900);
/// See [`DESK`].
pub const PHONE: (u32, u32) = (390, 844);

/// The keys Enter and Escape, to be written into an element (WebDriver, 17.4.2).
pub const ENTER: &str = "\u{e007}";
/// See [`ENTER`].
pub const ESCAPE: &str = "\u{e00c}";

/// A browser with one window. It ends with its value.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    http: reqwest::Client,
    session: String,
    dir: TempDir,
}

impl Browser {
    /// Starts one, with a profile of its own and no way out of this machine.
    ///
    /// # Panics
    /// There is none, or it does not start.
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("friday-browser-")
            .tempdir()
            .expect("a temporary folder can be made");
        let address = free_address();
        let log = fs::File::create(dir.path().join("driver.log"))
            .expect("a folder of ours can be written to");
        let mut command = Command::new(DRIVER);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let driver = command
            .arg(format!("--port={}", address.port()))
            .env("HOME", dir.path())
            .env("XDG_CONFIG_HOME", dir.path())
            .env("XDG_CACHE_HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{DRIVER} cannot be started: {error}; apt-get install chromium chromium-driver"
                )
            });
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .expect("a client can be made");
        let base = format!("http://{address}");
        let mut browser = Self {
            driver,
            http,
            session: base.clone(),
            dir,
        };
        let ready = async || {
            let answer = browser.http.get(format!("{base}/status")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        eventually("the browser's driver answers", PATIENCE, ready, |is| *is).await;
        let profile = browser.dir.path().join("profile");
        let args = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--disable-breakpad".to_owned(),
            "--disable-extensions".to_owned(),
            "--no-first-run".to_owned(),
            "--no-default-browser-check".to_owned(),
            "--force-device-scale-factor=1".to_owned(),
            // Whatever is not this machine has no address.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1".to_owned(),
            format!("--user-data-dir={}", profile.display()),
            format!("--window-size={},{}", DESK.0, DESK.1),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "timeouts": { "script": 20_000, "pageLoad": 20_000 },
        } } });
        let made = browser
            .ask("session", &wanted)
            .await
            .unwrap_or_else(|error| panic!("no Chromium: {error}"));
        let id = made["sessionId"].as_str().expect("a session has an id");
        browser.session = format!("{base}/session/{id}");
        browser
    }

    /// A command of WebDriver, and the value of its answer.
    async fn ask(&self, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}/{path}", self.session);
        let answer = self.http.post(url).json(body).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        let status = answer.status();
        let mut document: Value = answer.json().await.map_err(|error| error.to_string())?;
        if status.is_success() {
            Ok(document["value"].take())
        } else {
            Err(document["value"]["message"].to_string())
        }
    }

    async fn must(&self, path: &str, body: Value) -> Value {
        self.ask(path, &body)
            .await
            .unwrap_or_else(|error| panic!("{path} {body}: {error}"))
    }

    /// A command of the DevTools protocol.
    async fn tell(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.must("goog/cdp/execute", body).await
    }

    /// Goes to an address, and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.must("url", json!({ "url": url })).await;
    }

    /// Runs a script in the page: the body of a function, whose result is returned.
    pub async fn run(&self, script: &str) -> Value {
        self.must("execute/sync", json!({ "script": script, "args": [] }))
            .await
    }

    /// The same of one that calls `done` with its result once it has it.
    pub async fn run_to_done(&self, script: &str) -> Value {
        let script = format!("const done = arguments[arguments.length - 1];\n{script}");
        self.must("execute/async", json!({ "script": script, "args": [] }))
            .await
    }

    /// Waits until an expression of the page's is true.
    pub async fn until(&self, what: &str, limit: Duration, expression: &str) {
        let body = json!({ "script": format!("return Boolean({expression});"), "args": [] });
        // A page that is just being loaded answers nothing.
        let look = async || self.ask("execute/sync", &body).await;
        drop(eventually(what, limit, look, |seen| *seen == Ok(json!(true))).await);
    }

    /// What an element shows.
    pub async fn text(&self, css: &str) -> String {
        let script = format!(
            "return document.querySelector({})?.innerText ?? '';",
            json!(css)
        );
        let text = self.run(&script).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    async fn element(&self, css: &str) -> String {
        let body = json!({ "using": "css selector", "value": css });
        let found = self.must("element", body).await;
        let mut ids = found.as_object().into_iter().flatten();
        let (_, id) = ids.next().expect("a reference to an element");
        id.as_str().expect("an id is a text").to_owned()
    }

    /// Clicks on an element as a person does: where it is, if nothing is above it.
    pub async fn click(&self, css: &str) {
        let id = self.element(css).await;
        self.must(&format!("element/{id}/click"), json!({})).await;
    }

    /// Focuses an element and types, as a person with a keyboard does.
    pub async fn write(&self, css: &str, text: &str) {
        let id = self.element(css).await;
        self.must(&format!("element/{id}/value"), json!({ "text": text }))
            .await;
    }

    /// Makes the window one of this size, and the system's wish light or dark.
    pub async fn look(&self, (width, height): (u32, u32), dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tell("Emulation.setDeviceMetricsOverride", size).await;
        let wish = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": wish }] });
        self.tell("Emulation.setEmulatedMedia", features).await;
    }

    /// Writes a picture of the whole page, also of what one has to scroll to.
    ///
    /// # Panics
    /// It cannot be written.
    pub async fn picture(&self, file: &Path) {
        let how = json!({ "format": "png", "captureBeyondViewport": true });
        let taken = self.tell("Page.captureScreenshot", how).await;
        let data = taken["data"].as_str().expect("a picture has data");
        let bytes = STANDARD.decode(data).expect("that is base64");
        fs::write(file, bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// What the page wrote to its console since the last call, and what the browser had to say of it: errors alone, but
    /// for those of the network, which say that a controller was away.
    pub async fn errors(&self) -> Vec<String> {
        let log = self.must("se/log", json!({ "type": "browser" })).await;
        let entries = log.as_array().into_iter().flatten();
        entries
            .filter(|entry| entry["level"] == "SEVERE" && entry["source"] != "network")
            .map(Value::to_string)
            .collect()
    }

    /// The addresses that were asked for since the last call.
    pub async fn requests(&self) -> Vec<String> {
        let log = self.must("se/log", json!({ "type": "performance" })).await;
        let entries = log.as_array().into_iter().flatten();
        let asked = entries.filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &message["message"];
            let is_request = message["method"] == "Network.requestWillBeSent";
            let url = message["params"]["request"]["url"].as_str()?;
            is_request.then(|| url.to_owned())
        });
        asked.collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver and every process of the browser are one group.
        if let Ok(pid) = i32::try_from(self.driver.id()) {
            // It may have ended before.
            let _gone = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        drop(self.driver.wait());
    }
}

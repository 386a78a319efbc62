//! `friday watch` and colours, on a terminal and without one. The terminal is of `script`, which every Debian has.

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use controller_testing::eventually;
use rollout::Duration;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use crate::controller::Controller;
use crate::{analyzing, friday, output, promoted};

/// Longest wait for what a program should show or do at once.
const SHOWN_MAX: Duration = Duration::from_secs(30);

/// The two sequences by which a program takes the whole screen, and gives it back.
const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";

/// A program on a terminal of 100 columns and 30 rows. Killed when it is dropped.
struct OnTerminal {
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl OnTerminal {
    fn start(url: &str, arguments: &str, variables: &[(&str, &str)]) -> Self {
        let program = env!("CARGO_BIN_EXE_friday");
        let line = format!("stty cols 100 rows 30 && exec '{program}' {arguments}");
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &line])
            .arg("/dev/null")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm-256color")
            .env("FRIDAY_URL", url)
            .env("FRIDAY_AUTHOR", "ann")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (keys, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        let reading = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
                seen.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            keys,
            shown,
            reading,
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    async fn shows(&self, words: &str) {
        let what = format!("the terminal shows {words:?}");
        let look = async || self.shown();
        drop(eventually(&what, SHOWN_MAX, look, |shown| shown.contains(words)).await);
    }

    async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
        self.keys.flush().await.unwrap();
    }

    /// Its exit code, and all that it showed.
    async fn end(mut self) -> (i32, String) {
        let ended = tokio::time::timeout(SHOWN_MAX, self.child.wait()).await;
        let code = ended.unwrap().unwrap().code().unwrap();
        // What it said last is still to be read then.
        let read = tokio::time::timeout(SHOWN_MAX, &mut self.reading).await;
        read.unwrap().unwrap();
        (code, self.shown())
    }
}

/// The colours that a text sets: parameters of its SGR sequences (ECMA-48, 8.3.117; 90 to 107 as xterm has them). Those that go
/// back to the terminal's own, 39 and 49, are none.
fn colours(text: &str) -> Vec<u32> {
    let sequences = text.split("\x1b[").skip(1).filter_map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != ';')?;
        rest[end..].starts_with('m').then_some(&rest[..end])
    });
    let numbers = sequences.flat_map(|numbers| numbers.split(';'));
    numbers
        .filter_map(|number| number.parse().ok())
        .filter(|number| matches!(number, 30..=38 | 40..=48 | 90..=97 | 100..=107))
        .collect()
}

#[tokio::test]
async fn watch_takes_the_whole_terminal_asks_before_an_order_and_gives_it_back() {
    let controller = Controller::start(vec![analyzing()]).await;
    let mut terminal = OnTerminal::start(&controller.url(), "watch web", &[]);
    for words in [ENTERED, "web-3", "quit"] {
        terminal.shows(words).await;
    }
    let orders = || {
        let mut requests = controller.requests();
        requests.retain(|request| request.method == "POST");
        requests
    };
    // The first one is not meant, the second one is.
    terminal.press("anay").await;
    let given = eventually(
        "an order is given",
        SHOWN_MAX,
        async || orders(),
        |all| !all.is_empty(),
    )
    .await;
    assert_eq!(given[0].body["order"], "abort", "{given:?}");
    assert_eq!(given[0].body["by"], "ann");
    terminal.press("q").await;
    let (code, shown) = terminal.end().await;
    assert_eq!(code, 0, "{shown}");
    assert_eq!(orders().len(), 1);
    let (before, after) = shown.rsplit_once(LEFT).expect("the screen is given back");
    assert!(!colours(before).is_empty(), "{before:?}");
    assert!(after.contains("web-3: message of web-3"), "{after:?}");
    assert!(!after.contains(ENTERED), "{after:?}");
}

#[tokio::test]
async fn no_color_takes_the_colours_away_and_nothing_else() {
    let controller = Controller::start(vec![analyzing()]).await;
    let table: [(&[(&str, &str)], bool); 3] = [
        (&[], true),
        // An empty one is none: https://no-color.org.
        (&[("NO_COLOR", "")], true),
        (&[("NO_COLOR", "1")], false),
    ];
    for (variables, has_colours) in table {
        let mut whole = OnTerminal::start(&controller.url(), "watch web", variables);
        whole.shows("quit").await;
        whole.press("q").await;
        let tree = OnTerminal::start(&controller.url(), "get web", variables);
        for (what, terminal) in [("watch", whole), ("get", tree)] {
            let (code, shown) = terminal.end().await;
            assert_eq!(code, 0, "{what} {variables:?}: {shown}");
            let colours = colours(&shown);
            assert_eq!(
                !colours.is_empty(),
                has_colours,
                "{what} {variables:?}: {colours:?} in {shown:?}"
            );
            assert!(shown.contains("web"), "{what}: {shown:?}");
        }
    }
}

#[tokio::test]
async fn watch_adds_lines_where_there_is_no_terminal() {
    let views = || vec![analyzing(), analyzing(), promoted()];
    let controller = Controller::start(views()).await;
    let mut command = friday(&controller.url(), "watch web");
    // Neither makes a terminal of a file.
    command
        .env("TERM", "xterm-256color")
        .env("COLORTERM", "truecolor");
    let Output {
        status,
        stdout,
        stderr,
    } = output(command).await;
    let (lines, errors) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    );
    assert_eq!(status.code(), Some(0), "{lines}{errors}");
    assert!(!lines.contains(['\x1b', '\r']), "{lines:?}");
    assert!(lines.contains("message of web-3"), "{lines}");

    let controller = Controller::start(views()).await;
    let Output { status, stdout, .. } =
        output(friday(&controller.url(), "-o json watch web")).await;
    assert_eq!(status.code(), Some(0));
    let lines = String::from_utf8(stdout).unwrap();
    let documents: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(documents.last().unwrap()["ending"], "promoted", "{lines}");
}

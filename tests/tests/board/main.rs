//! The board in a real browser, on a real release.
//!
//! Needs Debian's packages chromium and chromium-driver, and in `FRIDAY_AXE` the file `axe.min.js` of the npm package
//! axe-core, which looks for what keeps people with a screen reader or weak eyes out; `tests/run` sets up both. Pictures of
//! the board are written to the folder in `FRIDAY_SCREENSHOTS`, or to cargo's folder for what tests write.

#![expect(
    clippy::unwrap_used,
    reason = "clippy excuses test functions alone, not what helps them"
)]

mod past;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use friday::auth::{NewToken, Role};
use friday::client::{Client, Token};
use rollout::Phase;
use serde_json::Value;
use system_tests::{
    Browser, DESK, ENTER, ESCAPE, PATIENCE, PHONE, Part, SERVICE, SPEC, Scene, deploy_request,
    friday,
};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How soon a change of the weight is on the page.
const SOON: Duration = Duration::from_secs(1);

/// Requests a second.
const RATE: u32 = 100;

/// One browser and one release at a time: a test is about a second, and two cores do not carry four of them.
static TURN: Mutex<()> = Mutex::const_new(());

async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Whether the page shows this of the canary.
fn shows_weight(percent: &str) -> String {
    format!("document.querySelector('#canary-image').innerText.startsWith('canary {percent} %')")
}

/// Fails on anything in the console, and on a request to anybody else than the controller.
async fn assert_quiet_and_at_home(browser: &Browser, url: &str) {
    assert_eq!(browser.errors().await, Vec::<String>::new());
    let asked = browser.requests().await;
    assert!(asked.len() > 5, "{asked:?}");
    // The page that the browser itself opens first is in it: chrome:// asks nobody.
    let is_home = |at: &&String| {
        [url, "data:", "chrome://"]
            .iter()
            .any(|of| at.starts_with(of))
    };
    let away: Vec<&String> = asked.iter().filter(|at| !is_home(at)).collect();
    assert!(away.is_empty(), "{away:?}");
}

#[tokio::test]
async fn shows_a_weight_within_a_second_lives_on_over_a_restart_and_aborts_once_asked() {
    let _turn = turn().await;
    let mut scene = Scene::start().await;
    let load = scene.load(RATE);
    let browser = Browser::start().await;
    browser.open(&scene.url()).await;
    let idle = "document.querySelector('#phase').innerText === 'idle'";
    browser
        .until("the idle service is shown", PATIENCE, idle)
        .await;

    let id = scene.deploy("worker:v2").await.id;
    for percent in [10.0, 25.0] {
        let what = format!("the canary gets {percent} percent");
        let at = |view: &friday::api::types::RolloutView| view.weight.set_percent >= percent;
        scene.until(&id, &what, PATIENCE, at).await;
        let began = Instant::now();
        let shown = format!(
            "{} || {}",
            shows_weight(&percent.to_string()),
            shows_weight("50")
        );
        browser.until(&what, PATIENCE, &shown).await;
        let passed = began.elapsed();
        assert!(passed < SOON, "{what}: shown after {passed:?}");
    }
    assert_quiet_and_at_home(&browser, &scene.url()).await;

    // A pause is asked about once, and says what it means.
    browser.write("[data-action=pause]", ENTER).await;
    let asked = browser.text("#confirm").await;
    assert!(asked.contains("is still judged"), "{asked}");
    browser.click("#confirm-yes").await;
    let paused = scene
        .until(&id, "it is paused", PATIENCE, |view| {
            matches!(view.phase, Phase::Paused { .. })
        })
        .await;
    let resumes = "document.querySelector('[data-action=resume]')";
    browser.until("it can be resumed", PATIENCE, resumes).await;

    scene.kill_controller();
    let lost = "document.querySelector('#link').classList.contains('lost')";
    browser
        .until("the page says that the controller is away", PATIENCE, lost)
        .await;
    scene.start_controller().await;
    let live = "document.querySelector('#link').innerText === 'live'";
    browser
        .until("the page is live again", PATIENCE, live)
        .await;
    let weight = shows_weight(&paused.weight.set_percent.to_string());
    browser
        .until("the weight is as before", PATIENCE, &weight)
        .await;

    browser.click("[data-action=abort]").await;
    let asked = browser.text("#confirm").await;
    assert!(asked.contains("goes back to worker:v1"), "{asked}");
    browser.click("#confirm-yes").await;
    let asked = browser.text("#confirm-error").await;
    assert!(asked.contains("Say why"), "{asked}");
    let still = scene.rollout(&id).await;
    assert!(
        matches!(still.phase, Phase::Paused { .. }),
        "{:?}",
        still.phase
    );
    browser.write("#reason", "numbers look odd").await;
    browser.click("#confirm-yes").await;
    let back = scene
        .until(&id, "it is rolled back", PATIENCE, |view| {
            view.ending.is_some()
        })
        .await;
    assert!(
        back.message.contains("numbers look odd"),
        "{}",
        back.message
    );
    let ended = "document.querySelector('#phase').innerText === 'aborted'";
    browser.until("the page says so", PATIENCE, ended).await;
    let told =
        "[...document.querySelectorAll('#story li')].some(li => li.innerText.includes('abort by'))";
    browser.until("and so does its log", PATIENCE, told).await;
    assert_eq!(browser.errors().await, Vec::<String>::new());
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{:?}", outcome.failures);
}

/// A controller that knows these tokens, and whoever bears one of them.
async fn start_with(scene: &Scene, tokens: &[NewToken], who: &NewToken) -> (Part, Client) {
    let lines: Vec<&str> = tokens.iter().map(|token| token.line.as_str()).collect();
    let file = scene.path("tokens");
    fs::write(&file, lines.join("\n")).unwrap();
    let mut args = scene.serve_args();
    args.extend(["--tokens".to_owned(), file]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let controller = Part::start("controller", &friday(), &args, scene.dir()).await;
    let token: Token = who.token.parse().unwrap();
    (controller, Client::new(&scene.url(), Some(token)).unwrap())
}

/// Signs in on a page that asks for a token.
async fn sign_in(browser: &Browser, token: &NewToken) {
    let form = "document.querySelector('#sign-in') && !document.querySelector('#sign-in').hidden";
    browser.until("a token is asked for", PATIENCE, form).await;
    browser.write("#token", &token.token).await;
    browser.click("#token-form button").await;
}

#[tokio::test]
async fn a_viewer_signs_in_and_has_no_buttons_while_an_operator_has() {
    let _turn = turn().await;
    let scene = Scene::prepare();
    let tokens = [("eye", Role::Viewer), ("hand", Role::Operator)]
        .map(|(name, role)| NewToken::random(name, role));
    let [viewer, operator] = &tokens;
    let (controller, client) = start_with(&scene, &tokens, operator).await;
    client
        .deploy(&deploy_request(SPEC, "worker:v2"))
        .await
        .unwrap();

    let browser = Browser::start().await;
    for (token, buttons) in [(viewer, false), (operator, true)] {
        browser.open(&scene.url()).await;
        browser.run("sessionStorage.clear();").await;
        browser.open(&scene.url()).await;
        sign_in(&browser, token).await;
        let shown = format!("document.querySelector('#title').innerText.startsWith('{SERVICE}-')");
        browser
            .until("the rollout is shown", PATIENCE, &shown)
            .await;
        let who = browser.text("#who").await;
        assert_eq!(who, format!("{}, {}", token.name, token.role));
        let abort = "document.querySelector('[data-action=abort]') !== null";
        if buttons {
            browser.until("there are buttons", PATIENCE, abort).await;
        } else {
            let count = browser
                .run("return document.querySelectorAll('#actions button').length;")
                .await;
            assert_eq!(count, 0);
        }
        assert_eq!(browser.errors().await, Vec::<String>::new());
        // What is shown is not kept where another visit finds it.
        let kept = browser
            .run("return JSON.stringify({ ...localStorage }) + location.href + document.cookie;")
            .await;
        assert!(!kept.to_string().contains(&token.token), "{kept}");
    }
    assert!(controller.stop().await.success());
}

#[tokio::test]
async fn somebody_else_approves_on_the_board_and_nobody_promotes_before() {
    let _turn = turn().await;
    let scene = Scene::prepare();
    let tokens = [("author", Role::Operator), ("second", Role::Approver)]
        .map(|(name, role)| NewToken::random(name, role));
    let [author, second] = &tokens;
    let (controller, client) = start_with(&scene, &tokens, author).await;
    let rules = "environments: { production: { approvals: 1 } }\n";
    let mut request = deploy_request(&format!("{SPEC}\n{rules}"), "worker:v2");
    request.environment = Some("production".to_owned());
    let id = client.deploy(&request).await.unwrap().id;

    let browser = Browser::start().await;
    browser.open(&scene.url()).await;
    sign_in(&browser, second).await;
    let approve = "document.querySelector('[data-action=approve]') !== null";
    browser.until("it may be approved", PATIENCE, approve).await;
    let full = "return document.querySelectorAll('[data-action=promote_full]').length;";
    assert_eq!(browser.run(full).await, 0);
    browser.click("[data-action=approve]").await;
    let asked = browser.text("#confirm").await;
    assert!(asked.contains("One of 1 approvals"), "{asked}");
    browser.click("#confirm-yes").await;
    let gone = "document.querySelector('[data-action=approve]') === null";
    browser.until("it is approved", PATIENCE, gone).await;
    let approved = client.rollout(&id).await.unwrap().admission.approved_by;
    assert_eq!(approved, ["second"]);
    assert!(controller.stop().await.success());
}

/// What the page shows that nobody can read, reach or hear, as axe-core finds it.
async fn barriers(browser: &Browser) -> Vec<String> {
    let file = std::env::var("FRIDAY_AXE").unwrap_or_else(|_| {
        panic!("FRIDAY_AXE names no file: `npm pack axe-core` brings package/axe.min.js; tests/run does that")
    });
    let axe =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("FRIDAY_AXE={file}: {error}"));
    browser.run(&axe).await;
    let found = browser
        .run_to_done(
            "axe.run(document, { resultTypes: ['violations'] }).then(
                all => done(all.violations.flatMap(v => v.nodes.map(n => `${v.id}: ${v.help}: ${n.html} (${n.failureSummary})`))),
                error => done([String(error)]));",
        )
        .await;
    let found = found.as_array().into_iter().flatten();
    found.map(Value::to_string).collect()
}

/// Pictures of the page as it is, on a phone and on a desk, light and dark; and what is wrong with any of them.
async fn look_at(browser: &Browser, folder: &Path, name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (size, place) in [(DESK, "desk"), (PHONE, "phone")] {
        for (dark, light) in [(false, "light"), (true, "dark")] {
            browser.look(size, dark).await;
            let picture = format!("{name}-{light}-{place}");
            browser
                .picture(&folder.join(format!("{picture}.png")))
                .await;
            let wide = browser
                .run("return document.documentElement.scrollWidth;")
                .await;
            if wide.as_u64().is_none_or(|wide| wide > u64::from(size.0)) {
                wrong.push(format!(
                    "{picture}: {wide} pixels wide, more than the window"
                ));
            }
            let found = barriers(browser).await;
            wrong.extend(
                found
                    .into_iter()
                    .map(|barrier| format!("{picture}: {barrier}")),
            );
        }
    }
    wrong
}

#[tokio::test]
async fn everybody_can_read_reach_and_hear_it_idle_good_and_bad() {
    let _turn = turn().await;
    let folder = match std::env::var_os("FRIDAY_SCREENSHOTS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("board"),
    };
    fs::create_dir_all(&folder).unwrap();
    let scene = Scene::start().await;
    let load = scene.load(RATE);
    let browser = Browser::start().await;
    browser.open(&scene.url()).await;
    let idle = "document.querySelector('#phase').innerText === 'idle'";
    browser
        .until("the idle service is shown", PATIENCE, idle)
        .await;
    let mut wrong = look_at(&browser, &folder, "idle").await;

    let good = scene.deploy("worker:v2").await.id;
    scene
        .until(&good, "it is at its second step", PATIENCE, |view| {
            view.weight.set_percent >= 25.0
        })
        .await;
    let judged = "document.querySelectorAll('#verdict-list li').length > 3 && document.querySelector('#course-charts svg')";
    browser.until("verdicts are shown", PATIENCE, judged).await;
    wrong.extend(look_at(&browser, &folder, "good").await);

    let bad = scene.deploy("worker:errors").await.id;
    let limit = 2 * PATIENCE;
    scene
        .until(&bad, "it is rolled back", limit, |view| {
            view.ending.is_some()
        })
        .await;
    let shown = format!(
        "document.querySelector('#title').innerText === '{bad}' && document.querySelector('#phase').innerText === 'rolled back'"
    );
    browser.until("the page says so", PATIENCE, &shown).await;
    browser
        .until("its verdicts are shown", PATIENCE, judged)
        .await;
    wrong.extend(look_at(&browser, &folder, "bad").await);

    // Every verdict is explained, and that by the keyboard alone.
    browser.write("#verdict-list button", ENTER).await;
    let explained = "document.querySelector('#explain').open && document.querySelectorAll('#explain-rows tr').length > 5";
    browser
        .until("the verdict is explained", PATIENCE, explained)
        .await;
    wrong.extend(look_at(&browser, &folder, "explained").await);
    browser.write("#explain-close", ESCAPE).await;
    let back = "!document.querySelector('#explain').open && document.activeElement.innerText === 'Explain'";
    browser
        .until("the keys are where they were", PATIENCE, back)
        .await;

    browser
        .open(&format!("{}/api/v1/rollouts/{bad}/card.svg", scene.url()))
        .await;
    browser.look((1200, 630), false).await;
    browser.picture(&folder.join("card-light.png")).await;
    browser.look((1200, 630), true).await;
    browser.picture(&folder.join("card-dark.png")).await;
    assert_eq!(browser.errors().await, Vec::<String>::new());
    println!("pictures of the board are in {}", folder.display());
    drop(load.end().await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! What is told to GitLab and others comes true there, once, whatever goes wrong on the way.

use std::path::Path;
use std::sync::Arc;

use controller_testing::gitlab::{
    Contract, Fault, Gitlab as StandIn, JOB_TOKEN, PROJECT, PROJECT_TOKEN, contract_folder,
};
use friday::clock::{Clock, SystemClock};
use friday::gitlab::{Gitlab, Secret};
use friday::notifier::courier::Outgoing;
use friday::notifier::{Audience, Notifier, Pace, announce};
use friday::origin::{JobToken, JobTokens, Origin};
use friday::spec::{self, ReadOptions};
use friday::store::{Change, Outbox, Saved, Sqlite, Store, StoreError};
use rollout::{Cause, Duration, Phase, Release, Rollout, RolloutId};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SHA: &str = "3f1c9e0b7a5d4c2e8f6a1b0c9d8e7f6a5b4c3d2e";
const PIPELINE: u64 = 90_001;

/// A quick pace: what takes hours is tested on paused time, beside the notifier.
const PACE: Pace = Pace {
    first: Duration::from_millis(5),
    most: Duration::from_millis(20),
};

/// Longest wait for everything to be told. It takes milliseconds, and some hundreds where an answer is slow.
const TOLD_MAX: Duration = Duration::from_secs(30);

struct World {
    gitlab: StandIn,
    store: Arc<Sqlite>,
    term: u64,
    tokens: Arc<JobTokens>,
    audience: Audience,
    wake: watch::Sender<u64>,
    running: Option<(
        CancellationToken,
        tokio::task::JoinHandle<Result<(), StoreError>>,
    )>,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::on(StandIn::start().await.unwrap()).await
    }

    async fn on(gitlab: StandIn) -> Self {
        gitlab.records(|records| records.add_merge_request(118, "merged"));
        let folder = tempfile::tempdir().unwrap();
        let secrets = folder.path().join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        let write = |name: &str, text: String| std::fs::write(secrets.join(name), text).unwrap();
        write("alert-url", format!("{}/alert\n", gitlab.url()));
        write("alert-key", "key".to_owned());
        write("chat-url", format!("{}/chat", gitlab.url()));
        write(
            "hook-key",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
        );
        let store = Sqlite::open(&folder.path().join("friday.db"))
            .await
            .unwrap();
        let term = store.take_over().await.unwrap();
        let mut world = Self {
            gitlab,
            store: Arc::new(store),
            term,
            tokens: Arc::default(),
            audience: Audience {
                has_gitlab: true,
                has_token: true,
                board: Some("https://friday.example.com".into()),
            },
            wake: watch::Sender::new(0),
            running: None,
            folder,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let token = self
            .audience
            .has_token
            .then(|| Secret::from_text(PROJECT_TOKEN).unwrap());
        let client = Gitlab::new(&self.gitlab.url(), None, token).unwrap();
        let clock: Arc<dyn Clock> = SystemClock::new();
        let courier = Outgoing::new(
            Arc::clone(&self.store) as Arc<dyn Store>,
            Arc::clone(&clock),
            Some(client),
            Arc::clone(&self.tokens),
            self.folder.path().join("secrets"),
            None,
        )
        .open_to_loopback(true);
        let notifier = Notifier {
            store: Arc::clone(&self.store) as Arc<dyn Outbox>,
            term: self.term,
            clock,
            courier: Arc::new(courier),
            wake: self.wake.subscribe(),
            pace: PACE,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(notifier.run(stop.clone()));
        self.running = Some((stop, task));
    }

    /// Another controller takes over.
    async fn restart(&mut self) {
        self.end().await;
        self.term = self.store.take_over().await.unwrap();
        self.begin();
    }

    async fn end(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap().unwrap();
        }
    }

    fn saved(&self, number: u64, phase: Phase, notify: &str) -> Saved {
        let text = format!("service: web\nport: 80\nnotify: {notify}\n");
        let spec = spec::read(&text, "friday.yml", &ReadOptions::default()).unwrap();
        let service = spec.service.clone();
        let release = |image: &str, digit: &str| {
            Release::new(
                image,
                format!("sha256:{}", digit.repeat(64)),
                Some(SHA.to_owned()),
            )
        };
        let mut rollout = Rollout::new(
            RolloutId::new(&service, number),
            service,
            "production".into(),
            "dana".into(),
            release("web:v1", "1"),
            release("web:v2", "2"),
            spec,
            false,
            "2026-03-02T09:15:00Z".parse().unwrap(),
        );
        rollout.phase = phase;
        let origin: Origin = serde_json::from_value(json!({
            "project_id": PROJECT, "project_path": "acme/shop", "pipeline_id": PIPELINE, "job_id": 500_123,
            "job_name": "canary", "sha": SHA, "ref_name": "main", "user_login": "dana",
        }))
        .unwrap();
        Saved {
            number,
            rollout,
            judge: None,
            verdict: None,
            origin: Some(origin),
            lease: None,
        }
    }

    /// A move of a rollout: what is to be told of it is saved.
    async fn moves(&self, before: Option<&Saved>, after: &Saved) {
        let change = Change {
            messages: announce(&self.audience, before, after),
            ..Change::default()
        };
        let now = SystemClock::new().now();
        self.store.save(self.term, now, &change).await.unwrap();
        self.wake.send_modify(|count| *count += 1);
    }

    async fn until_told(&self) {
        let telling = async {
            while !self.store.outbox_state().await.unwrap().waiting.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(TOLD_MAX, telling).await.is_err() {
            panic!("{:?}", self.store.outbox_state().await);
        }
    }

    /// A rollout from its start to its end, with this notify; each move is told before the next.
    async fn release(&self, number: u64, notify: &str, end: Phase) {
        let moves = [DEPLOYING, analyzing(0), analyzing(1), end];
        let mut before = None;
        for phase in moves {
            let after = self.saved(number, phase, notify);
            self.moves(before.as_ref(), &after).await;
            self.until_told().await;
            before = Some(after);
        }
    }

    /// What a whole rollout left there, in a line.
    fn left(&self) -> String {
        self.gitlab.records(|records| {
            let of = |all: &[serde_json::Value], key: &str| {
                let each: Vec<String> = all.iter().map(|one| one[key].to_string()).collect();
                each.join(",").replace('"', "")
            };
            let promoted = |all: &[serde_json::Value], key: &str| {
                let is_so =
                    |one: &&serde_json::Value| one[key].as_str().unwrap().contains("**promoted**");
                all.iter().filter(is_so).count()
            };
            format!(
                "deployments {}; statuses {}; notes {} ({} promoted); issues {}; releases {}",
                of(&records.deployments, "status"),
                of(&records.statuses, "status"),
                records.notes.len(),
                promoted(&records.notes, "body"),
                of(&records.issues, "state"),
                of(&records.releases, "tag_name"),
            )
        })
    }
}

const DEPLOYING: Phase = Phase::Deploying {
    elapsed: Duration::ZERO,
};

fn analyzing(step: usize) -> Phase {
    Phase::Analyzing {
        step,
        elapsed: Duration::ZERO,
    }
}

const ALL_OF_GITLAB: &str = "{ gitlab: { ticket: true, release: true } }";

const WHOLE: &str =
    "deployments success; statuses success; notes 1 (1 promoted); issues closed; releases web-1";

#[tokio::test]
async fn a_rollout_leaves_one_record_of_each_kind() {
    let mut world = World::new().await;
    world.release(1, ALL_OF_GITLAB, Phase::Promoted).await;
    assert_eq!(world.left(), WHOLE);
    let note = world
        .gitlab
        .records(|records| records.notes[0]["body"].clone());
    let note = note.as_str().unwrap();
    assert!(note.contains("| image | `web:v2` | `web:v1` |"), "{note}");
    assert!(note.contains("](https://friday.example.com/"), "{note}");
    let status = world.gitlab.records(|records| records.statuses[0].clone());
    assert_eq!(
        (status["pipeline_id"].as_u64(), status["name"].as_str()),
        (Some(PIPELINE), Some("friday/production"))
    );
    world.end().await;
}

/// A whole rollout whose request number `at` fails like this; where the controller dies of it, another one goes on.
async fn whole_in_spite_of(fault: Fault, at: usize, dies: bool) {
    let mut world = World::new().await;
    world.gitlab.fail(std::iter::repeat_n(Fault::Well, at));
    world.gitlab.fail([fault, fault]);
    let mut before = None;
    for phase in [DEPLOYING, analyzing(0), analyzing(1), Phase::Promoted] {
        let after = world.saved(1, phase, ALL_OF_GITLAB);
        world.moves(before.as_ref(), &after).await;
        if dies {
            tokio::time::sleep(Duration::from_millis(3)).await;
            world.restart().await;
        }
        world.until_told().await;
        before = Some(after);
    }
    assert!(world.gitlab.has_failed(), "{fault:?} at {at}");
    assert_eq!(world.left(), WHOLE, "{fault:?} at {at}, dies: {dies}");
    let state = world.store.outbox_state().await.unwrap();
    assert_eq!(state.dead_count, 0, "{fault:?} at {at}: {state:?}");
    world.end().await;
}

#[tokio::test]
async fn every_fault_at_every_request_loses_nothing_and_doubles_nothing() {
    let mut world = World::new().await;
    world.release(1, ALL_OF_GITLAB, Phase::Promoted).await;
    let requests = world.gitlab.seen().len();
    assert!(requests > 15, "{requests}");
    world.end().await;
    for fault in Fault::ALL {
        for dies in [false, true] {
            // The last request may come earlier where a controller dies: what is superseded is not told.
            let last = if dies { requests / 2 } else { requests };
            let each = (0..last).map(|at| whole_in_spite_of(fault, at, dies));
            futures::future::join_all(each).await;
        }
    }
}

#[tokio::test]
async fn a_deployment_that_its_job_made_is_left_to_the_job() {
    let mut world = World::new().await;
    world
        .gitlab
        .records(|records| records.add_deployment_of_job("production", SHA, PIPELINE));
    world.release(1, "{ gitlab: true }", Phase::Promoted).await;
    assert_eq!(
        world.left(),
        "deployments running; statuses success; notes 1 (1 promoted); issues ; releases "
    );
    world.end().await;
}

#[tokio::test]
async fn a_deployment_that_became_its_jobs_after_it_was_ours_is_refused_once_and_left_to_the_job() {
    let table = [
        (false, Phase::Promoted, "success", "(1 promoted)"),
        (
            true,
            Phase::RolledBack {
                cause: Cause::Evidence {
                    signal: "errors".into(),
                },
            },
            "failed",
            "(0 promoted)",
        ),
    ];
    for (by_job_token, end, status, promoted) in table {
        let mut world = World::new().await;
        let id = RolloutId::from_text("web-1");
        if by_job_token {
            world.tokens.keep(&id, JobToken::new(JOB_TOKEN).unwrap());
        }
        let start = world.saved(1, DEPLOYING, "{ gitlab: true }");
        world.moves(None, &start).await;
        world.until_told().await;
        let remembered = world.store.told(&id, "deployment").await.unwrap();
        assert!(remembered.is_some(), "ours is remembered");
        world
            .gitlab
            .records(|records| records.give_deployments_to_their_jobs(PIPELINE));
        let over = world.saved(1, end, "{ gitlab: true }");
        world.moves(Some(&start), &over).await;
        world.until_told().await;
        let seen = world.gitlab.seen();
        let puts = seen
            .iter()
            .filter(|one| one.method == "PUT" && one.path.contains("/deployments/"));
        let puts: Vec<_> = puts
            .map(|one| (one.token, one.body["status"].as_str().unwrap()))
            .collect();
        // The project token may do more than a job's: it is tried too, and then nobody is.
        let as_whom: &[&str] = if by_job_token {
            &["job", "project"]
        } else {
            &["project"]
        };
        let expected: Vec<_> = as_whom.iter().map(|token| (*token, status)).collect();
        assert_eq!(puts, expected);
        assert_eq!(
            world.left(),
            format!(
                "deployments running; statuses {status}; notes 1 {promoted}; issues ; releases "
            ),
            "the record is the job's to move, and all else is told"
        );
        let state = world.store.outbox_state().await.unwrap();
        assert_eq!(state.dead_count, 0, "no error for people: {state:?}");
        world.end().await;
    }
}

#[tokio::test]
async fn a_job_token_suffices_for_deployments_and_gives_way_when_its_job_ends() {
    let mut world = World::new().await;
    let id = RolloutId::from_text("web-1");
    world.tokens.keep(&id, JobToken::new(JOB_TOKEN).unwrap());
    let start = world.saved(1, DEPLOYING, "{ gitlab: true }");
    world.moves(None, &start).await;
    world.until_told().await;
    let seen = world.gitlab.seen();
    let by = |path: &str| {
        let mut all: Vec<&str> = seen
            .iter()
            .filter(|one| one.path.ends_with(path))
            .map(|one| one.token)
            .collect();
        all.dedup();
        all
    };
    assert_eq!(by("/deployments"), ["job"]);
    assert_eq!(by(&format!("/statuses/{SHA}")), ["project"]);
    world.gitlab.records(|records| records.job_has_ended = true);
    let over = world.saved(1, Phase::Promoted, "{ gitlab: true }");
    world.moves(Some(&start), &over).await;
    world.until_told().await;
    assert_eq!(
        world.left(),
        "deployments success; statuses success; notes 1 (1 promoted); issues ; releases "
    );
    world.end().await;
}

#[tokio::test]
async fn without_a_project_token_a_job_that_ended_keeps_only_its_own_rollout_waiting() {
    let mut world = World::new().await;
    world.end().await;
    world.audience.has_token = false;
    world.begin();
    // Its token is known to nobody, as after a restart.
    let first = world.saved(1, DEPLOYING, "{ gitlab: true }");
    world.moves(None, &first).await;
    let second = RolloutId::from_text("web-2");
    world
        .tokens
        .keep(&second, JobToken::new(JOB_TOKEN).unwrap());
    let start = world.saved(2, DEPLOYING, "{ gitlab: true }");
    world.moves(None, &start).await;
    tokio::time::timeout(TOLD_MAX, async {
        while world
            .store
            .told(&second, "deployment")
            .await
            .unwrap()
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    // The job's next request brings it again.
    let first = RolloutId::from_text("web-1");
    world.tokens.keep(&first, JobToken::new(JOB_TOKEN).unwrap());
    world.until_told().await;
    assert_eq!(world.gitlab.records(|records| records.deployments.len()), 2);
    assert!(world.gitlab.seen().iter().all(|one| one.token == "job"));
    world.end().await;
}

#[tokio::test]
async fn a_note_that_somebody_removed_is_made_anew_and_two_rollouts_have_one_each() {
    let mut world = World::new().await;
    world.release(1, "{ gitlab: true }", Phase::Promoted).await;
    world.release(2, "{ gitlab: true }", Phase::Promoted).await;
    assert_eq!(world.gitlab.records(|records| records.notes.len()), 2);
    let start = world.saved(3, DEPLOYING, "{ gitlab: true }");
    world.moves(None, &start).await;
    world.until_told().await;
    world.gitlab.records(|records| records.notes.clear());
    let over = world.saved(3, Phase::Promoted, "{ gitlab: true }");
    world.moves(Some(&start), &over).await;
    world.until_told().await;
    assert_eq!(world.gitlab.records(|records| records.notes.len()), 1);
    assert_eq!(world.gitlab.records(|records| records.deployments.len()), 3);
    world.end().await;
}

#[tokio::test]
async fn a_commit_without_merge_request_has_no_note_and_that_is_no_trouble() {
    let mut world = World::new().await;
    world
        .gitlab
        .records(|records| records.merge_requests.clear());
    world.release(1, "{ gitlab: true }", Phase::Promoted).await;
    assert_eq!(
        world.left(),
        "deployments success; statuses success; notes 0 (0 promoted); issues ; releases "
    );
    world.end().await;
}

/// Of people who write as much as GitLab takes.
fn long(number: u64, fields: serde_json::Value) -> serde_json::Value {
    let text = "x".repeat(900_000);
    let mut one = json!({ "id": number, "iid": number, "state": "opened", "body": text, "description": text });
    if let (Some(one), serde_json::Value::Object(fields)) = (one.as_object_mut(), fields) {
        one.extend(fields);
    }
    one
}

#[tokio::test]
async fn a_merge_request_and_issues_full_of_long_texts_silence_nobody() {
    let mut world = World::new().await;
    world.gitlab.records(|records| {
        for number in 900..905 {
            let note = long(number, json!({ "noteable_iid": 118 }));
            records.notes.push(note);
            let issue = long(number, json!({ "title": "Release web-1 to production" }));
            records.issues.push(issue);
        }
    });
    world.release(1, ALL_OF_GITLAB, Phase::Promoted).await;
    assert_eq!(
        world.left(),
        "deployments success; statuses success; notes 6 (1 promoted); \
         issues opened,opened,opened,opened,opened,closed; releases web-1"
    );
    world.gitlab.records(|records| {
        for number in 900..905 {
            let one = long(number, json!({ "title": "of a fork" }));
            records.merge_requests.push(one);
        }
    });
    world.release(2, "{ gitlab: true }", Phase::Promoted).await;
    assert_eq!(world.gitlab.records(|records| records.deployments.len()), 2);
    world.end().await;
}

#[tokio::test]
async fn chats_alerts_and_webhooks_are_told_once_in_order() {
    let mut world = World::new().await;
    let notify = format!(
        "{{ gitlab: {{ alert: {{ url_file: alert-url, key_file: alert-key }}, status: false, note: false, deployment: false }}, \
         slack: {{ url_file: chat-url }}, webhook: {{ url: '{}/hook', secret_file: hook-key }} }}",
        world.gitlab.url()
    );
    world.gitlab.fail([
        Fault::Internal,
        Fault::Limited,
        Fault::BadGateway,
        Fault::Closed,
    ]);
    let cause = Cause::Evidence {
        signal: "errors".into(),
    };
    let start = world.saved(1, DEPLOYING, &notify);
    world.moves(None, &start).await;
    world.until_told().await;
    let back = world.saved(
        1,
        Phase::RollingBack {
            cause: cause.clone(),
            stage: rollout::rollout::Retreat::Leaving,
            elapsed: Duration::ZERO,
        },
        &notify,
    );
    world.moves(Some(&start), &back).await;
    world.until_told().await;
    let over = world.saved(1, Phase::RolledBack { cause }, &notify);
    world.moves(Some(&back), &over).await;
    world.until_told().await;
    world.gitlab.records(|records| {
        assert_eq!(records.alerts.len(), 2, "{:?}", records.alerts);
        assert!(records.alerts[1]["end_time"].is_string());
        assert_eq!(records.lines.len(), 3, "{:?}", records.lines);
        let phases: Vec<&str> = records
            .hooks
            .iter()
            .map(|hook| hook.body["data"]["phase"].as_str().unwrap())
            .collect();
        assert_eq!(phases, ["deploying", "rolling_back", "rolled_back"]);
        let names: Vec<&str> = records.hooks[0]
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            assert!(names.contains(&name), "{names:?}");
        }
    });
    assert_eq!(world.store.outbox_state().await.unwrap().dead_count, 0);
    world.end().await;
}

#[tokio::test]
async fn a_file_outside_the_folder_of_secrets_is_not_sent_anywhere() {
    let mut world = World::new().await;
    std::fs::write(
        world.folder.path().join("other"),
        format!("{}/chat", world.gitlab.url()),
    )
    .unwrap();
    let start = world.saved(1, DEPLOYING, "{ slack: { url_file: ../other } }");
    world.moves(None, &start).await;
    tokio::time::timeout(TOLD_MAX, async {
        loop {
            let state = world.store.outbox_state().await.unwrap();
            let error = state.waiting.first().and_then(|one| one.error.clone());
            if error.is_some_and(|error| error.contains("not below the folder")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    assert!(world.gitlab.seen().is_empty());
    world.end().await;
}

/// Runs where `FRIDAY_GITLAB_CONTRACT` names the folder of GitLab's API document.
#[tokio::test]
async fn contract_every_request_is_one_that_gitlab_documents() {
    let mut world = World::on(StandIn::start_checked().await.unwrap()).await;
    world.release(1, ALL_OF_GITLAB, Phase::Promoted).await;
    world.restart().await;
    let back = |cause| Phase::RolledBack { cause };
    let judged = back(Cause::Evidence {
        signal: "errors".into(),
    });
    let superseded = back(Cause::Superseded {
        by: RolloutId::from_text("web-4"),
    });
    world.release(2, ALL_OF_GITLAB, judged).await;
    world.release(3, ALL_OF_GITLAB, superseded).await;
    world.release(4, ALL_OF_GITLAB, Phase::Promoted).await;
    assert_eq!(
        world.left(),
        "deployments success,failed,canceled,success; statuses success; notes 4 (2 promoted); \
         issues closed,closed,closed,closed; releases web-1,web-4"
    );
    assert!(world.gitlab.seen().len() > 50);
    assert_eq!(world.gitlab.mistakes(), Vec::<String>::new());
    world.end().await;
}

#[test]
fn contract_refuses_what_gitlab_does_not_document() {
    let folder = contract_folder().expect("FRIDAY_GITLAB_CONTRACT names the folder of GitLab's API document; leave this test out with --skip contract_");
    let contract = Contract::read(Path::new(&folder));
    let deployment = |status: &str| json!({ "environment": "production", "sha": SHA, "ref": "main", "tag": false, "status": status });
    let check = |path: &str, query: &str, body: &serde_json::Value| {
        contract.check("POST", path, query, body)
    };
    assert!(check("/projects/1/deployments", "", &deployment("success")).is_empty());
    for (path, query, body) in [
        ("/projects/1/deployment", "", deployment("success")),
        ("/projects/1/deployments", "", deployment("done")),
        (
            "/projects/1/deployments",
            "dry_run=true",
            deployment("success"),
        ),
        (
            "/projects/1/deployments",
            "",
            json!({ "environment": "production" }),
        ),
        ("/projects/1/deployments", "", json!({ "environment": 1 })),
        ("/projects/1/deployments", "", json!("success")),
    ] {
        assert!(
            !check(path, query, &body).is_empty(),
            "{path}?{query} {body}"
        );
    }
}

//! Releases that may not begin, whatever the pipeline says.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use crate::site::{PRODUCTION, STAGING, Site, commit};

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_refuses_and_so_does_an_environment_that_needs_another_first() {
    let site = Site::start().await;
    let add = |file: &str, text: &str| {
        let path = site.project().join(file);
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let plain = fs::read(site.project().join("friday.staging.yml")).unwrap();
    add(
        "friday.staging.yml",
        "freeze: [{ cron: \"* * * * *\", for: 1h, zone: UTC }]\n",
    );
    add(
        "friday.yml",
        &format!(
            "environments: {{ production: {{ needs: {{ service: {STAGING}, environment: staging }} }} }}\n"
        ),
    );
    commit(&site.project(), "nobody releases now");
    let frozen = site.run("frozen", &[]).await;
    assert_ne!(frozen.code, 0, "{}", frozen.text);
    assert!(frozen.text.contains("FAIL 20"), "{}", frozen.text);
    assert_eq!(site.count(STAGING).await, 0, "{}", frozen.text);
    let variables = site.report(STAGING, "friday.env");
    assert!(
        variables.contains("FRIDAY_OUTCOME=refused\n"),
        "{variables}"
    );
    assert!(
        site.report(STAGING, "junit.xml")
            .contains("<error type=\"refused\"")
    );

    let skipped = site.run("skipped", &["canary: web in production"]).await;
    assert!(skipped.text.contains("FAIL 20"), "{}", skipped.text);
    assert_eq!(site.count(PRODUCTION).await, 0, "{}", skipped.text);

    fs::write(site.project().join("friday.staging.yml"), plain).unwrap();
    commit(&site.project(), "the freeze is over");
    let thawed = site.run("thawed", &[]).await;
    assert_eq!(thawed.code, 0, "{}", thawed.text);
}

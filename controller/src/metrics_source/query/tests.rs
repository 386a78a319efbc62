use proptest::prelude::*;

use super::*;

fn subject(release: &str) -> Subject {
    Subject {
        release: release.into(),
        service: "web".into(),
        environment: "production".into(),
        arm: "canary",
    }
}

fn about(text: &str, release: &str) -> String {
    Query::parse(text).unwrap().about(&subject(release))
}

fn refused(text: &str) -> String {
    Query::parse(text).unwrap_err().to_string()
}

#[test]
fn fills_in_every_placeholder() {
    assert_eq!(
        about(
            r#"max(lag{release="$release", job='$service/$environment', arm="$arm"})"#,
            "5f0c"
        ),
        r#"max(lag{release="5f0c", job='web/production', arm="canary"})"#
    );
    assert!(Query::parse(r#"x{arm="$arm"}"#).unwrap().tells_arms_apart());
    assert!(
        Query::parse(r#"x{r="$release"}"#)
            .unwrap()
            .tells_arms_apart()
    );
    assert!(
        !Query::parse(r#"x{s="$service"}"#)
            .unwrap()
            .tells_arms_apart()
    );
    // What is no placeholder stays as it is: the end of a regular expression, and what was captured.
    let same = r#"label_replace(x{a=~"b$|c"}, "to", "$1-${2}", "from", '(.*)$')"#;
    assert_eq!(about(same, "r"), same);
}

#[test]
fn no_value_breaks_out_of_its_string() {
    let evil = "a\"} or vector(1) # \\ ' \n";
    assert_eq!(
        about(r#"x{r="$release"}"#, evil),
        r#"x{r="a\"} or vector(1) # \\ ' \u000a"}"#
    );
    assert_eq!(
        about(r#"x{r='$release'}"#, evil),
        r#"x{r='a"} or vector(1) # \\ \' \u000a'}"#
    );
    // In a regular expression it matches itself and nothing else.
    assert_eq!(
        about(r#"x{r=~"$release-.*"}"#, "v1.2|v3"),
        r#"x{r=~"v1\\.2\\|v3-.*"}"#
    );
    assert_eq!(about(r#"x{r!~ "$release"}"#, ".*"), r#"x{r!~ "\\.\\*"}"#);
    assert_eq!(
        about(r#"x{r=~"a",s="$release"}"#, "v1.2"),
        r#"x{r=~"a",s="v1.2"}"#
    );
}

#[test]
fn f06_refuses_a_placeholder_that_nothing_sets() {
    for (text, word) in [
        (r#"x{r="$relase"}"#, "$relase:"),
        (r#"x{r="$__range"}"#, "$__range:"),
        ("rate(x[$__rate_interval])", "$__rate_interval:"),
        (r#"x{r="${release}"}"#, "${release}:"),
        ("x * $factor", "$factor:"),
    ] {
        let said = refused(text);
        assert!(
            said.starts_with(word) && said.contains("expected one of $release"),
            "{text}: {said}"
        );
    }
    for text in [
        "$release",
        "x{r=$release}",
        "x{r=`$release`}",
        "sum by ($arm) (x)",
    ] {
        assert!(
            refused(text).contains("stands outside of double or single quotes"),
            "{text}"
        );
    }
}

#[test]
fn refuses_what_is_open_and_what_is_too_long() {
    for (text, what) in [
        ("max(x", "a parenthesis is not closed"),
        ("x)", "the parenthesis before a ) is not closed"),
        ("x{a=\"b", "a string is not closed"),
        ("x{a=\"b\"", "a { is not closed"),
        ("rate(x[1m)", "a [ is not closed"),
        ("rate(x[1])", "[1]: expected a range"),
    ] {
        assert!(refused(text).contains(what), "{text}: {}", refused(text));
    }
    assert_eq!(Query::parse("  "), Err(QueryError::Length));
    assert_eq!(
        Query::parse(&"x".repeat(QUERY_BYTES_MAX + 1)),
        Err(QueryError::Length)
    );
}

#[test]
fn f08_refuses_to_ask_for_another_time() {
    for text in ["x offset -5m", "x @ 1609746000", "rate(x[5m] @ end())"] {
        assert!(
            refused(text).contains("asks for another time"),
            "{text}: {}",
            refused(text)
        );
    }
}

#[test]
fn f08_knows_how_far_a_question_looks_back() {
    let seconds = |text: &str| Query::parse(text).unwrap().window().as_secs();
    for (text, window) in [
        ("x", 0),
        ("x - 5", 0),
        ("rate(x[1m])", 60),
        ("rate(x[1m]) / rate(y[30s])", 60),
        ("rate(x[1m] offset 5m) - 3", 360),
        ("max_over_time(rate(x{a=\"[9h]\"}[1m])[5m:30s]) # [9h]", 360),
        ("sum by (a) (increase(x[1h30m]))", 5400),
        ("x[2w1d]", 15 * 24 * 3600),
    ] {
        assert_eq!(seconds(text), window, "{text}");
    }
}

#[test]
fn f06_lists_the_metrics_that_a_question_names() {
    let metrics = |text: &str| Query::parse(text).unwrap().metrics().join(" ");
    for (text, names) in [
        (
            r#"max(pipeline_consumer_lag{release="$release"})"#,
            "pipeline_consumer_lag",
        ),
        (
            "sum by (job) (rate(a:b[1m])) / ignoring(x, y) group_left sum without(z)(c)",
            "a:b c",
        ),
        (
            "sum(a) BY (job) > bool 1e5 and b offset 1m or a unless -Inf",
            "a b",
        ),
        (
            "histogram_quantile(0.99, sum(rate(h_bucket[1m])) by (le))",
            "h_bucket",
        ),
        (r#"{__name__="a"}"#, ""),
        ("vector(1) # not_this", ""),
    ] {
        assert_eq!(metrics(text), names, "{text}");
    }
}

proptest! {
    #[test]
    fn never_panics_and_keeps_what_is_no_placeholder(text in "[ -~ä\n]{0,60}") {
        if let Ok(query) = Query::parse(&text)
            && query.pieces.iter().all(|piece| matches!(piece, Piece::Text(_)))
        {
            prop_assert_eq!(query.about(&subject("r")), text);
        }
    }

    #[test]
    fn a_filled_in_question_has_the_same_tokens(value in "\\PC{0,30}") {
        // Read again, its string ends where it did, and names no metric besides.
        let filled = about(r#"x{r="$release"}"#, &value.replace('$', ""));
        let query = Query::parse(&filled).unwrap();
        prop_assert_eq!(query.metrics(), ["x"]);
    }
}

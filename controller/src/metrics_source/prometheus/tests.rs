use super::*;

const URL: &str = "http://prometheus:9090";

/// When the recorded answers were asked for.
fn at() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn read(status: u16, body: &str) -> String {
    match read_value(status, body.as_bytes(), at(), URL) {
        Ok(Some(value)) => value.to_string(),
        Ok(None) => "no data".to_owned(),
        Err(error) => format!(
            "{error} [{}]",
            if error.is_transient() {
                "later"
            } else {
                "never"
            }
        ),
    }
}

fn vector(time: &str, value: &str) -> String {
    format!(
        r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[{time},"{value}"]}}]}}}}"#
    )
}

fn success(data: &str, more: &str) -> String {
    format!(r#"{{"status":"success","data":{data}{more}}}"#)
}

const ONE: &str = r#"{"resultType":"vector","result":[{"metric":{},"value":[1700000000,"7"]}]}"#;

#[test]
fn f02_reads_a_number_or_no_data_and_never_takes_the_one_for_the_other() {
    let two = r#"{"resultType":"vector","result":[{"metric":{"a":"1"},"value":[1700000000,"1"]},{"metric":{"a":"2"},"value":[1700000000,"2"]}]}"#;
    let histogram = r#"{"resultType":"vector","result":[{"metric":{},"histogram":[1700000000,{"count":"3","sum":"1"}]}]}"#;
    let refused = r#"{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:5: parse error: unclosed left parenthesis"}"#;
    let answers = [
        // Numbers.
        (200, vector("1700000000", "12.5")),
        (200, vector("1700000000.781", "-3e2")),
        (200, success(r#"{"resultType":"scalar","result":[1700000000,"1000"]}"#, "")),
        (200, success(ONE, r#","infos":["PromQL info: x"],"warnings":["PromQL warning: metric might not be a counter"]"#)),
        // No data.
        (200, success(r#"{"resultType":"vector","result":[]}"#, "")),
        (200, vector("1700000000", "NaN")),
        (200, vector("1700000000", "+Inf")),
        (200, vector("1700000000", "-Inf")),
        (200, vector("1699999699", "5")),
        (200, vector("1700000002", "5")),
        // Not one number.
        (200, success(two, "")),
        (200, success(histogram, "")),
        (200, success(r#"{"resultType":"matrix","result":[]}"#, "")),
        (200, success(r#"{"resultType":"string","result":[1700000000,"a"]}"#, "")),
        // Refused, or not whole.
        (400, refused.to_owned()),
        (422, r#"{"status":"error","errorType":"execution","error":"many-to-many matching not allowed"}"#.to_owned()),
        (503, r#"{"status":"error","errorType":"timeout","error":"query timed out"}"#.to_owned()),
        (200, r#"{"status":"error","errorType":"","error":""}"#.to_owned()),
        (200, success(ONE, r#","warnings":["remote read: connection refused"]"#)),
        // No answer of a Prometheus.
        (200, String::new()),
        (204, String::new()),
        (200, "null".to_owned()),
        (200, "[]".to_owned()),
        (200, "{}".to_owned()),
        (200, "<!DOCTYPE html><title>Sign in</title>".to_owned()),
        (200, success("null", "")),
        (200, success(r#"{"resultType":"vector","result":null}"#, "")),
        (200, success(r#"{"resultType":"vector","result":[{"metric":{},"value":[1700000000,7]}]}"#, "")),
        (200, vector("1700000000", "seven")),
        (200, vector("1700000000", "12.5")[..60].to_owned()),
        (302, String::new()),
        (404, "404 page not found".to_owned()),
        (429, "slow down".to_owned()),
        (500, ONE.to_owned()),
        (502, "<html>Bad Gateway</html>".to_owned()),
    ];
    let said: Vec<_> = answers
        .iter()
        .map(|(status, body)| format!("{status} {body}\n  => {}", read(*status, body)))
        .collect();
    insta::assert_snapshot!("answers", said.join("\n"));
}

#[test]
fn makes_addresses() {
    let (base, name) = address("http://prometheus:9090/prefix/").unwrap();
    assert_eq!(name, "http://prometheus:9090/prefix");
    let at = at() - Duration::from_millis(1500);
    assert_eq!(
        query_url(&base, r#"max(x{a="b c"}) + 1"#, at).as_str(),
        "http://prometheus:9090/prefix/api/v1/query?query=max%28x%7Ba%3D%22b+c%22%7D%29+%2B+1&time=1699999998.500"
    );
    assert_eq!(
        values_url(&address("http://p").unwrap().0, "a:b").as_str(),
        "http://p/api/v1/label/__name__/values?match%5B%5D=a%3Ab"
    );
}

#[test]
fn refuses_addresses_it_cannot_ask() {
    for (url, reason) in [
        ("prometheus", "relative URL"),
        ("https://prometheus", "only http://"),
        ("http://ann:hunter2@prometheus:9090", "a user or a password"),
        ("http://prometheus/?x", "no ?"),
    ] {
        let said = address(url).unwrap_err().to_string();
        assert!(
            said.contains(reason) && !said.contains("hunter2"),
            "{url}: {said}"
        );
    }
}

#[test]
fn f06_tells_a_metric_that_was_never_seen_from_one_that_was() {
    let names = |body: &str| read_names(200, body.as_bytes(), URL);
    assert_eq!(
        names(r#"{"status":"success","data":["up"]}"#).unwrap(),
        ["up"]
    );
    assert!(
        names(r#"{"status":"success","data":[]}"#)
            .unwrap()
            .is_empty()
    );
    assert!(names(r#"{"status":"success"}"#).is_err());
    assert!(names("").is_err());
}

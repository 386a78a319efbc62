//! Metrics as OpenMetrics 1.0: the text that has room for exemplars
//! (<https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>), and who asks for it. Pure.
//!
//! It differs from Prometheus' older text in little: counters are named without their `_total`, escaping holds for help as
//! well, exemplars stand behind buckets, and the end is marked.

use std::fmt::{self, Write};

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use crate::exemplars::Exemplar;

/// What it is, for whoever reads it.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Longest exemplar: the runes of its labels' names and values. A trace's take 7 + 32 and 8 + 16 ("trace_id", "span_id").
const EXEMPLAR_RUNES_MAX: usize = 128;

/// Whether whoever accepts this would rather have OpenMetrics 1.0 than Prometheus' text (RFC 9110, 12.5.1). It must be asked
/// for by its name: who takes anything gets the text that everything reads.
pub(crate) fn is_wanted(accept: &str) -> bool {
    let mut wanted: Option<u16> = None;
    // The most specific range that the text falls into says how much it is wanted.
    let mut text = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut version, mut quality) = (None, 1_000);
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => version = Some(value.trim().trim_matches('"').to_owned()),
                "q" => quality = thousandths(value.trim()),
                _ => {}
            }
        }
        match (kind.as_str(), version.as_deref()) {
            ("application/openmetrics-text", None | Some("1.0.0")) => {
                wanted = wanted.max(Some(quality));
            }
            ("text/plain", None | Some("0.0.4")) => text = text.max((3, quality)),
            ("text/*", _) => text = text.max((2, quality)),
            ("*/*", _) => text = text.max((1, quality)),
            (_, _) => {}
        }
    }
    wanted.is_some_and(|quality| quality > 0 && quality >= text.1)
}

/// A weight from 0 to 1 in thousandths; what is none counts as 0.
fn thousandths(weight: &str) -> u16 {
    let weight: f64 = weight.parse().unwrap_or(0.0);
    if (0.0..=1.0).contains(&weight) {
        // In that range, so it fits.
        (weight * 1_000.0).round() as u16
    } else {
        0
    }
}

/// All of these metrics. `exemplars` gives those of a histogram's label set, by bucket; none, or one for each.
///
/// # Errors
/// None: writing to memory does not fail.
pub(crate) fn encode(
    families: &[MetricFamily],
    exemplars: impl Fn(&str, &[LabelPair]) -> Vec<Option<Exemplar>>,
) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for family in families {
        write_family(&mut text, family, &exemplars)?;
    }
    text.push_str("# EOF\n");
    Ok(text)
}

fn write_family(
    text: &mut String,
    family: &MetricFamily,
    exemplars: &impl Fn(&str, &[LabelPair]) -> Vec<Option<Exemplar>>,
) -> fmt::Result {
    let name = family.name();
    let (name, kind) = match (family.get_field_type(), name.strip_suffix("_total")) {
        (MetricType::COUNTER, Some(name)) => (name, "counter"),
        // Without its ending it is none here.
        (MetricType::COUNTER, None) | (MetricType::UNTYPED, _) => (name, "unknown"),
        (MetricType::GAUGE, _) => (name, "gauge"),
        (MetricType::HISTOGRAM, _) => (name, "histogram"),
        (MetricType::SUMMARY, _) => (name, "summary"),
    };
    writeln!(text, "# TYPE {name} {kind}")?;
    if !family.help().is_empty() {
        writeln!(text, "# HELP {name} {}", Escaped(family.help()))?;
    }
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match family.get_field_type() {
            MetricType::COUNTER => {
                let value = metric.get_counter().get_value();
                write_sample(text, family.name(), labels, None, value)?;
                text.push('\n');
            }
            MetricType::GAUGE => {
                write_sample(text, name, labels, None, metric.get_gauge().get_value())?;
                text.push('\n');
            }
            MetricType::HISTOGRAM => {
                write_histogram(text, name, metric, &exemplars(name, labels))?;
            }
            // Nobody here has any.
            MetricType::SUMMARY | MetricType::UNTYPED => {}
        }
    }
    Ok(())
}

fn write_histogram(
    text: &mut String,
    name: &str,
    metric: &Metric,
    exemplars: &[Option<Exemplar>],
) -> fmt::Result {
    let histogram = metric.get_histogram();
    let labels = metric.get_label();
    let all = histogram.get_sample_count();
    let bounded = histogram.get_bucket().iter();
    let bounded = bounded.filter(|bucket| bucket.upper_bound().is_finite());
    let buckets = bounded.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let bucket_name = format!("{name}_bucket");
    for (number, (bound, count)) in buckets.chain([(f64::INFINITY, all)]).enumerate() {
        let le = Number(bound).to_string();
        write_sample(text, &bucket_name, labels, Some(&le), count as f64)?;
        if let Some(Some(exemplar)) = exemplars.get(number) {
            write_exemplar(text, exemplar)?;
        }
        text.push('\n');
    }
    let sum = histogram.get_sample_sum();
    write_sample(text, &format!("{name}_sum"), labels, None, sum)?;
    text.push('\n');
    write_sample(text, &format!("{name}_count"), labels, None, all as f64)?;
    text.push('\n');
    Ok(())
}

/// A sample without the end of its line.
fn write_sample(
    text: &mut String,
    name: &str,
    labels: &[LabelPair],
    le: Option<&str>,
    value: f64,
) -> fmt::Result {
    text.push_str(name);
    let le = le.map(|le| ("le", le));
    let pairs = labels.iter().map(|pair| (pair.name(), pair.value()));
    let mut before = '{';
    for (name, value) in pairs.chain(le) {
        write!(text, "{before}{name}=\"{}\"", Escaped(value))?;
        before = ',';
    }
    if before == ',' {
        text.push('}');
    }
    write!(text, " {}", Value(value))
}

fn write_exemplar(text: &mut String, exemplar: &Exemplar) -> fmt::Result {
    let (trace, span) = (
        exemplar.at.trace().to_string(),
        exemplar.at.span().to_string(),
    );
    let runes = "trace_id".len() + trace.len() + "span_id".len() + span.len();
    debug_assert!(runes <= EXEMPLAR_RUNES_MAX, "ids are of fixed lengths");
    write!(
        text,
        " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {} {:.3}",
        Value(exemplar.value),
        exemplar.seconds
    )
}

/// Text between quotation marks, or of a help line.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' => f.write_str("\\\"")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The value of a sample.
struct Value(f64);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            f.write_str("NaN")
        } else if self.0.is_infinite() {
            f.write_str(if self.0 > 0.0 { "+Inf" } else { "-Inf" })
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// A number that is a label: the same number is always the same text, and looks like one that may have a fraction.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Value(self.0).to_string();
        f.write_str(&text)?;
        if self.0.is_finite() && !text.contains('.') {
            f.write_str(".0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use friday_traces::TraceParent;
    use prometheus::{
        Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
    };

    use super::*;

    #[test]
    fn is_asked_for_by_name() {
        for (accept, wanted) in [
            ("", false),
            ("*/*", false),
            ("application/*", false),
            ("text/plain;version=0.0.4", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text; Version=1.0.0", true),
            ("application/openmetrics-text; version=\"1.0.0\"", true),
            ("application/openmetrics-text;version=0.0.1", false),
            ("application/openmetrics-text;version=2.0.0", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=much", false),
            ("application/openmetrics-text;q=-1", false),
            ("application/openmetrics-text, */*", true),
            ("application/openmetrics-text;q=0.5,text/plain", false),
            ("application/openmetrics-text;q=0.5,text/*;q=0.6", false),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.5", true),
            // The more specific range counts for the text.
            (
                "application/openmetrics-text;q=0.5,*/*;q=0.9,text/plain;q=0.1",
                true,
            ),
            // Prometheus 2.42, and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                true,
            ),
            // Prometheus that was told to prefer its own text.
            (
                "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
                false,
            ),
        ] {
            assert_eq!(is_wanted(accept), wanted, "{accept}");
        }
    }

    fn registry() -> Registry {
        let registry = Registry::new();
        let paths = IntCounterVec::new(Opts::new("a_total", "Of \"all\" \\ kinds\nof."), &["path"]);
        let paths = paths.unwrap();
        paths.with_label_values(&["C:\\\"new\"\nline"]).inc_by(3);
        paths.with_label_values(&["\u{e4}"]).inc();
        registry.register(Box::new(paths)).unwrap();
        let odd = IntCounter::new("odd", "Not named as a counter is.").unwrap();
        registry.register(Box::new(odd)).unwrap();
        let gauge = Gauge::new("b_ratio", "A gauge.").unwrap();
        gauge.set(0.25);
        registry.register(Box::new(gauge)).unwrap();
        let opts = HistogramOpts::new("c_seconds", "Time.").buckets(vec![0.001, 0.5, 2.0]);
        let histogram = Histogram::with_opts(opts).unwrap();
        for seconds in [0.0005, 0.25, 7.0] {
            histogram.observe(seconds);
        }
        registry.register(Box::new(histogram)).unwrap();
        registry
    }

    #[test]
    fn is_written_to_the_letter() {
        let field = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let exemplar = |value| {
            Some(Exemplar {
                at: TraceParent::parse(field).unwrap(),
                value,
                seconds: 1_700_000_000.25,
            })
        };
        let of = |name: &str, _: &[LabelPair]| {
            assert_eq!(name, "c_seconds");
            vec![None, exemplar(0.25), None, exemplar(7.0)]
        };
        let text = encode(&registry().gather(), of).unwrap();
        let ids = "trace_id=\"0af7651916cd43dd8448eb211c80319c\",span_id=\"b7ad6b7169203331\"";
        let expected = format!(
            "# TYPE a counter\n\
             # HELP a Of \\\"all\\\" \\\\ kinds\\nof.\n\
             a_total{{path=\"C:\\\\\\\"new\\\"\\nline\"}} 3\n\
             a_total{{path=\"\u{e4}\"}} 1\n\
             # TYPE b_ratio gauge\n\
             # HELP b_ratio A gauge.\n\
             b_ratio 0.25\n\
             # TYPE c_seconds histogram\n\
             # HELP c_seconds Time.\n\
             c_seconds_bucket{{le=\"0.001\"}} 1\n\
             c_seconds_bucket{{le=\"0.5\"}} 2 # {{{ids}}} 0.25 1700000000.250\n\
             c_seconds_bucket{{le=\"2.0\"}} 2\n\
             c_seconds_bucket{{le=\"+Inf\"}} 3 # {{{ids}}} 7 1700000000.250\n\
             c_seconds_sum 7.2505\n\
             c_seconds_count 3\n\
             # TYPE odd unknown\n\
             # HELP odd Not named as a counter is.\n\
             odd 0\n\
             # EOF\n"
        );
        assert_eq!(text, expected);
        let of_exemplar: usize = ids.chars().filter(|c| !"=\",".contains(*c)).count();
        assert!(of_exemplar <= EXEMPLAR_RUNES_MAX);
    }

    #[test]
    fn has_the_samples_of_the_older_text() {
        let families = registry().gather();
        let samples = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let lines = lines.map(|line| line.replace("le=\"2.0\"", "le=\"2\""));
            lines.collect::<Vec<_>>()
        };
        let older = TextEncoder::new().encode_to_string(&families).unwrap();
        let text = encode(&families, |_, _| Vec::new()).unwrap();
        assert_eq!(samples(&text), samples(&older));
        assert!(text.ends_with("\n# EOF\n"));
    }

    #[test]
    fn writes_numbers_that_are_none() {
        for (value, written) in [
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (1e21, "1000000000000000000000"),
            (0.1, "0.1"),
        ] {
            assert_eq!(Value(value).to_string(), written);
        }
        assert_eq!(Number(1.0).to_string(), "1.0");
        assert_eq!(Number(0.25).to_string(), "0.25");
    }
}

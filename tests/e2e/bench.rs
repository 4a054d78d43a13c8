//! `bank bench`: that it measures what it says, and leaves nothing behind. How fast anything is, no test asks.

use serde_json::Value;

use crate::common::{Ran, run, temp};
use crate::resp::tool;

fn bench(arguments: &[&str]) -> Ran {
    // However slow the machine is, something is measured.
    run(&[&["bench", "--transfers", "2000", "--warm-up", "0.2"], arguments].concat())
}

fn object(ran: Ran) -> Value {
    serde_json::from_str(&ran.with_code(0).out).expect("one JSON object")
}

fn number(object: &Value, path: &str) -> f64 {
    object.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {object}"))
}

#[test]
fn a_run_is_summed_up() {
    let dir = temp();
    let place = dir.path().display().to_string();
    let shape =
        ["--clusters", "2", "--accounts", "1000", "--batch", "40", "--clients", "3", "--in-flight", "2"];
    let drawn = ["--cross", "0.3", "--reads", "0.2", "--skew", "0.4", "--seed", "5"];
    let how = ["--data-dir", &place, "--json"];
    let said = object(bench(&[&shape[..], &drawn, &how].concat()));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0, "what was made is removed");
    for path in ["/throughput_tps", "/committed", "/reads", "/cpu_ns_per_transfer", "/syncs"] {
        assert!(number(&said, path) > 0.0, "{path} in {said}");
    }
    let count = |of: &str| number(&said, &format!("/latency_us/{of}/count"));
    let aborted = said["aborted"].as_object().expect("reasons").values().filter_map(Value::as_f64);
    let answered = number(&said, "/committed") + aborted.sum::<f64>() + number(&said, "/unknown");
    assert_eq!(count("transfer"), answered, "{said}");
    assert_eq!(count("transfer"), count("intra") + count("cross"));
    assert!((0.2..0.4).contains(&(count("cross") / count("transfer"))), "{said}");
    assert!((0.15..0.25).contains(&(count("read") / (count("transfer") + count("read")))), "{said}");
    for of in ["transfer", "intra", "cross", "read", "batch"] {
        let at = |share: &str| number(&said, &format!("/latency_us/{of}/{share}"));
        assert!(at("p50") > 0.0 && at("p50") <= at("p99") && at("p99") <= at("max"), "{of} in {said}");
    }
    // Each transfer is in the log of each of three servers, with 24 bytes at least; and was sent to two of them.
    assert!(
        number(&said, "/wal_bytes_per_transfer") > 72.0 && number(&said, "/net_bytes_per_transfer") > 48.0
    );
    assert_eq!(number(&said, "/settings/clients"), 3.0);
    let course = said.pointer("/course/committed").and_then(Value::as_array).expect("a course");
    assert_eq!(course.iter().filter_map(Value::as_f64).sum::<f64>(), number(&said, "/committed"));
}

#[test]
fn a_fixed_rate_is_kept_and_processes_are_measured() {
    let shape = ["--processes", "--batch", "10", "--rate", "1000", "--mix", "smallbank", "--json"];
    let said = object(bench(&shape));
    let asked = number(&said, "/latency_us/transfer/count") + number(&said, "/latency_us/read/count");
    assert!(asked <= 1000.0 * number(&said, "/seconds") + 100.0, "{said}");
    for server in ["S1", "S2", "S3"] {
        assert!(number(&said, &format!("/rss_bytes/{server}")) > 1e6, "{said}");
        assert!(number(&said, &format!("/cpu_ns_per_transfer_by/{server}")) > 0.0, "{said}");
    }
    let floor =
        ["bench", "--seconds", "1", "--warm-up", "0.2", "--batch", "1", "--in-flight", "50", "--floor"];
    let ran = run(&floor).with_code(0);
    assert!(ran.out.contains("% of it"), "{}", ran.out);
    assert!(ran.out.contains("transfers/s committed") && ran.out.contains("ns of processor"), "{}", ran.out);
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    for (arguments, part) in [
        (&["--cross", "1.5"][..], "--cross"),
        (&["--batch", "0"], "--batch"),
        (&["--servers", "2"], "--servers 2"),
        (&["--accounts", "1"], "needs 2 accounts"),
        (&["--rate", "0"], "--rate"),
        (&["--config", "/nowhere/cluster.toml"], "/nowhere/cluster.toml"),
        (&["--config", "x.toml", "--accounts", "5"], "--accounts"),
        (&["--data-dir", "/nowhere"], "/nowhere"),
        (&["--predict", "--clusters", "2"], "--clusters"),
        (&["--predict", "--data-dir", "/nowhere"], "/nowhere"),
        (&["--predict-clusters", "1001"], "--predict-clusters"),
        (&["--predict-clusters", "3,x"], "--predict-clusters"),
        (&["--network-us", "far"], "--network-us"),
    ] {
        let ran = run(&[&["bench"], arguments].concat()).with_code(2);
        assert!(ran.err.contains(part), "{arguments:?}: {}", ran.err);
    }
}

/// How good it is, no test asks: only on a machine with nothing else to do would that mean something.
#[test]
fn a_prediction_is_made_and_checked() {
    let quick = ["--predict", "--transfers", "300", "--warm-up", "0.1", "--predict-clusters", "2,6"];
    let load = ["--batch", "20", "--in-flight", "2", "--network-us", "100"];
    let said = object(run(&[&["bench", "--json"], &quick[..], &load].concat()));
    let rows = |of: &str| said[of].as_array().unwrap_or_else(|| panic!("no {of}")).clone();
    let shape = |row: &Value| (number(row, "/clusters"), number(row, "/cross"));
    let predicted: Vec<_> = rows("predicted").iter().map(shape).collect();
    assert_eq!(predicted, [(2.0, 0.0), (2.0, 0.1), (2.0, 1.0), (6.0, 0.0), (6.0, 0.1), (6.0, 1.0)]);
    for row in rows("predicted") {
        assert!(number(&row, "/throughput_tps") > 0.0, "{row}");
        // There and back to the leader, and from there to a follower.
        assert!(number(&row, "/batch_us/p50") > 400.0, "{row}");
        assert!(number(&row, "/batch_us/p50") <= number(&row, "/batch_us/p99"), "{row}");
    }
    let checked = rows("checked");
    assert_eq!(checked.len(), 7);
    for row in checked {
        let [predicted, measured] =
            ["/predicted/throughput_tps", "/measured/throughput_tps"].map(|path| number(&row, path));
        assert!((predicted / measured / number(&row, "/ratio") - 1.0).abs() < 0.01, "{row}");
    }
    assert!(number(&said, "/costs_ns/sync_p50") > 0.0 && number(&said, "/load/batch") == 20.0);
    let assumptions = rows("assumptions");
    assert!(assumptions.len() > 4 && assumptions.iter().all(Value::is_string));
}

/// A browser, with a page that says of each of its plots how large it is drawn.
#[test]
fn a_report_shows_every_plot_in_a_browser() {
    let dir = temp();
    let place = dir.path().join("report");
    let shown = place.display().to_string();
    let quick = ["--transfers", "300", "--warm-up", "0.1", "--batch", "20", "--accounts", "100"];
    let shape = ["--clusters", "2", "--cross", "0.5", "--predict-clusters", "1,2,4"];
    let ran = run(&[&["bench", "--report", &shown], &shape[..], &quick].concat());
    assert!(ran.with_code(0).out.contains("transfers/s committed"));
    let page = std::fs::read_to_string(place.join("index.html")).expect("the page");
    let plots =
        ["course", "percentiles", "load", "skew", "skew-throughput", "accounts", "clusters", "prediction"];
    let figures = std::fs::read_to_string(place.join("report.json")).expect("the figures");
    let figures: Value = serde_json::from_str(&figures).expect("JSON");
    let runs = figures["runs"].as_array().expect("runs");
    assert!(runs.len() >= 18 && runs.iter().all(|run| number(run, "/figures/throughput_tps") > 0.0));
    let predicted = figures["prediction"]["predicted"].as_array().expect("predictions");
    assert_eq!(predicted.len(), 7, "one cluster has no transfers across");
    assert!(page.contains("What is assumed:") && page.contains("measured here"));
    assert!(
        !["src=", "href=", "@import", "url("].iter().any(|part| page.contains(part)),
        "nothing is fetched"
    );

    let measures = "<script>for (const plot of document.querySelectorAll('section')) {\
                    const svg = plot.querySelector('svg'); if (!svg) continue;\
                    const box = svg.getBoundingClientRect(), lines = svg.querySelectorAll('polyline').length;\
                    plot.dataset.seen = `${plot.id} ${Math.round(box.width)}x${Math.round(box.height)} ${lines > 0}`;\
                    }</script></body>";
    let measured = place.join("measured.html");
    std::fs::write(&measured, page.replace("</body>", measures)).expect("a page");
    let url = format!("file://{}", measured.display());
    let profile = format!("--user-data-dir={}", dir.path().join("browser").display());
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1000,800",
        &profile,
        "--dump-dom",
        &url,
    ];
    let seen = tool("chromium", &flags);
    for plot in plots {
        let said = seen.split(&format!("data-seen=\"{plot} ")).nth(1).unwrap_or_else(|| panic!("no {plot}"));
        let (size, rest) = said.split_once(' ').expect("a size");
        let (width, height) = size.split_once('x').expect("a size");
        let [width, height] = [width, height].map(|side| side.parse::<u32>().expect("a number"));
        assert!(width > 600 && height > 200 && rest.starts_with("true"), "{plot}: {said:.40}");
    }
}

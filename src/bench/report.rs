//! `bank bench --report DIR`: one page with plots of many runs, and the figures behind it.
//!
//! The flags say what the first run is; each series changes one thing of it. The page needs no network and takes its colours from
//! the reader's choice of light or dark.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::bench::drive::INTERVAL;
use crate::bench::figures::Figures;
use crate::bench::plot::{Axis, Plot, Scale, Series, short, svg};
use crate::bench::predict::{self, Prediction};
use crate::bench::{Bank, BenchArgs, Place, draw, measure};
use crate::metrics::Latencies;

/// Shares of the highest rate at which latency is measured in an open loop.
const LOADS: [f64; 6] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0];
const SKEWS: [f64; 6] = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0];
const ACCOUNTS: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const CLUSTERS: [u16; 3] = [1, 2, 3];
/// The shares of all batches, or transfers, that are no slower than what the plot of percentiles shows.
const SHARES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999];

/// What is run, with the value that is changed.
struct Run {
    series: &'static str,
    value: f64,
    args: BenchArgs,
}

/// Runs everything and writes the page. Returns its path and the figures of the first run.
///
/// # Errors
///
/// The directory cannot be written, or a run fails; what was measured before it is lost.
pub fn write(args: &BenchArgs, dir: &Path, stop: &Arc<AtomicBool>) -> Result<(PathBuf, Figures), String> {
    fs::create_dir_all(dir).map_err(|e| format!("{}: cannot be made: {e}", dir.display()))?;
    let base = measure(args, Bank::start(args)?, stop)?;
    let mut measured: Vec<(&'static str, f64, Figures)> = Vec::new();
    let runs = series(args, &base);
    for (n, run) in runs.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        eprintln!("run {} of {}: {} {}", n + 2, runs.len() + 1, run.series, short(run.value));
        measured.push((run.series, run.value, measure(&run.args, Bank::start(&run.args)?, stop)?));
    }
    // A bank that runs already is not calibrated: what it costs depends on machines that are not known.
    let here = !matches!(args.place, Place::Elsewhere(_));
    let prediction = if here { Some(predict::predict(args, stop)?) } else { None };
    let mut plots = plots(args, &base, &measured);
    plots.extend(prediction.as_ref().map(Prediction::plot));
    let page = page(&base, &plots, prediction.as_ref())?;
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).map(|()| path.clone()).map_err(|e| format!("{}: {e}", path.display()))
    };
    let others: Vec<Value> = measured
        .iter()
        .map(
            |(series, value, figures)| json!({ "series": series, "value": value, "figures": figures.json() }),
        )
        .collect();
    let mut all = json!({ "base": base.json(), "runs": others });
    all["prediction"] = prediction.map_or(Value::Null, |prediction| prediction.json());
    put("report.json", &format!("{all:#}\n"))?;
    Ok((put("index.html", &page)?, base))
}

fn series(args: &BenchArgs, base: &Figures) -> Vec<Run> {
    let plain = BenchArgs { floor: None, report: None, ..args.clone() };
    let mut runs = Vec::new();
    for share in LOADS {
        let mut args = plain.clone();
        args.load.rate = Some((base.operations_rate() * share).max(1.0));
        runs.push(Run { series: "load", value: share, args });
    }
    for skew in SKEWS {
        runs.push(Run { series: "skew", value: skew, args: BenchArgs { skew, ..plain.clone() } });
    }
    // A bank that runs already has the accounts and clusters that it has.
    if !matches!(args.place, Place::Elsewhere(_)) {
        let enough =
            |accounts: u64, clusters: u16| accounts >= draw::least_accounts(args.mix) * u64::from(clusters);
        for accounts in ACCOUNTS.into_iter().filter(|accounts| enough(*accounts, args.topology.clusters)) {
            let mut args = plain.clone();
            args.topology.accounts = accounts;
            runs.push(Run { series: "accounts", value: accounts as f64, args });
        }
        for clusters in CLUSTERS.into_iter().filter(|clusters| enough(args.topology.accounts, *clusters)) {
            let mut args = plain.clone();
            args.topology.clusters = clusters;
            runs.push(Run { series: "clusters", value: f64::from(clusters), args });
        }
    }
    runs
}

fn plots(args: &BenchArgs, base: &Figures, measured: &[(&'static str, f64, Figures)]) -> Vec<Plot> {
    let axis = |label, scale| Axis { label, scale };
    let of = |wanted: &'static str| measured.iter().filter(move |(series, ..)| *series == wanted);
    let line = |wanted: &'static str, name: &str, y: &dyn Fn(&Figures) -> f64| Series {
        name: name.into(),
        points: of(wanted).map(|(_, value, figures)| (*value, y(figures))).collect(),
        line: true,
    };
    let by_rate = |name: &str, share: f64| Series {
        name: name.into(),
        points: of("load")
            .map(|(.., figures)| (figures.operations_rate(), figures.measured.batch.quantile(share) as f64))
            .collect(),
        line: true,
    };
    let seconds = INTERVAL.as_secs_f64();
    // The last interval is not a whole one.
    let course = &base.measured.course[..base.measured.course.len().saturating_sub(1)];
    let course = course.iter().enumerate().map(|(n, count)| (n as f64 * seconds, *count as f64 / seconds));
    let percentiles = |name: &str, latencies: &Latencies| Series {
        name: name.into(),
        points: SHARES.map(|share| (1.0 / (1.0 - share), latencies.quantile(share) as f64)).to_vec(),
        line: true,
    };
    let cost = |figures: &Figures| figures.processor_ns_per_transfer().unwrap_or(0.0);
    let open = format!(
        "Open loop: batches of {} are due at a fixed rate, and latency counts from when each was due.",
        args.load.batch
    );
    let mut plots = vec![
        Plot {
            id: "course",
            title: "Throughput over time",
            note: format!("Committed transfers of the first run, counted every {} ms.", INTERVAL.as_millis()),
            x: axis("seconds", Scale::Linear),
            y: axis("transfers/s", Scale::Linear),
            series: vec![Series { name: "committed".into(), points: course.collect(), line: true }],
        },
        Plot {
            id: "percentiles",
            title: "Latency percentiles",
            note: "Of the first run. At 100, one in a hundred took longer (p99).".into(),
            x: axis("one in so many took longer", Scale::Log),
            y: axis("µs", Scale::Log),
            series: base.measured.kinds().map(|(name, latencies)| percentiles(name, latencies)).collect(),
        },
        Plot {
            id: "load",
            title: "Latency against load",
            note: open,
            x: axis("operations/s", Scale::Linear),
            y: axis("µs of a batch", Scale::Log),
            series: vec![by_rate("p50", 0.5), by_rate("p99", 0.99), by_rate("p99.9", 0.999)],
        },
        Plot {
            id: "skew",
            title: "Aborts against skew",
            note: "At 0 all accounts are alike, at 1 one account is in every transfer; between, Zipf with the exponent \
                   skew / (1 - skew)."
                .into(),
            x: axis("skew", Scale::Linear),
            y: axis("aborted, of a hundred", Scale::Linear),
            series: vec![line("skew", "aborted", &|figures| 100.0 * figures.aborted_share())],
        },
        Plot {
            id: "skew-throughput",
            title: "Throughput against skew",
            note: "The same runs.".into(),
            x: axis("skew", Scale::Linear),
            y: axis("transfers/s", Scale::Linear),
            series: vec![line("skew", "committed", &Figures::throughput)],
        },
    ];
    if !matches!(args.place, Place::Elsewhere(_)) {
        let note = |what: &str| format!("Processor time of all servers and clients together, by {what}.");
        plots.push(Plot {
            id: "accounts",
            title: "Cost per transfer against accounts",
            note: note("accounts of the bank"),
            x: axis("accounts", Scale::Log),
            y: axis("ns per transfer", Scale::Linear),
            series: vec![line("accounts", "all", &cost)],
        });
        plots.push(Plot {
            id: "clusters",
            title: "Cost per transfer against clusters",
            note: note("clusters, all on this machine"),
            x: axis("clusters", Scale::Linear),
            y: axis("ns per transfer", Scale::Linear),
            series: vec![line("clusters", "all", &cost)],
        });
    }
    plots
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(base: &Figures, plots: &[Plot], prediction: Option<&Prediction>) -> Result<String, String> {
    let (headline, table) = (escaped(&base.headline()), escaped(&base.table()));
    let mut body = format!("<p class=\"lead\">{headline}</p>\n<pre>{table}</pre>\n");
    for plot in plots {
        let _ = writeln!(
            body,
            "<section id=\"{}\">\n<h2>{}</h2>\n<p>{}</p>\n<figure>{}</figure>\n{}</section>",
            plot.id,
            escaped(plot.title),
            escaped(&plot.note),
            svg(plot)?,
            figures_of(plot)
        );
    }
    if let Some(prediction) = prediction {
        let assumptions =
            prediction.assumptions().map(|line| format!("<li>{}</li>", escaped(&line))).join("\n");
        let [all, checks] = [prediction.table(), prediction.check_table()].map(|table| escaped(&table));
        let _ = writeln!(
            body,
            "<section id=\"prediction-check\">\n<h2>What was predicted, and how good that is</h2>\n\
             <p>Each server and each client on a machine of its own:</p>\n<pre>{all}</pre>\n\
             <p>The same simulation of this machine, and what it did (transfers/s, and µs of a batch; others: \
             what else had its processors meanwhile, and is taken off the prediction):</p>\n\
             <pre>{checks}</pre>\n<p>What is assumed:</p>\n<ul>{assumptions}</ul>\n</section>"
        );
    }
    let mut settings = String::new();
    for (name, value) in base.settings.as_object().into_iter().flatten() {
        let _ =
            writeln!(settings, "<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(&value.to_string()));
    }
    let page = include_str!("report.html");
    Ok(page.replace("<!-- settings -->", &settings).replace("<!-- body -->", &body))
}

/// The points of a plot as a table, for who cannot see it or wants the numbers.
fn figures_of(plot: &Plot) -> String {
    let mut rows = String::new();
    for series in &plot.series {
        for (x, y) in series.points.iter().take(100) {
            let _ = writeln!(
                rows,
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
                escaped(&series.name),
                short(*x),
                short(*y)
            );
        }
    }
    format!(
        "<details><summary>figures</summary><table><tr><th></th><th>{}</th><th>{}</th></tr>\n{rows}</table></details>\n",
        escaped(plot.x.label),
        escaped(plot.y.label)
    )
}

//! What the log looks like: time, level, server, place, words.

use std::io::Write;

/// Begins to write the log to standard error: what `RUST_LOG` asks for, or else `default` and worse.
pub fn begin(default: &str) {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format(|out, record| {
            // The thread of a server has its name, and many servers may write to one place.
            let (time, thread) = (out.timestamp_micros(), std::thread::current());
            let (level, style) = (record.level(), out.default_level_style(record.level()));
            let (name, target, what) = (thread.name().unwrap_or("-"), record.target(), record.args());
            writeln!(out, "[{time} {style}{level:<5}{style:#} {name} {target}] {what}")
        })
        .init();
}

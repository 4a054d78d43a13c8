//! What a run took of the machine: processor time, memory, syncs, bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Nanoseconds that threads of this process have run, by name; those of one name added up.
///
/// # Errors
///
/// The kernel does not tell (`/proc` is missing, or no scheduler statistics are kept).
pub fn threads() -> Result<BTreeMap<String, u64>, String> {
    let mut ran = BTreeMap::new();
    for task in tasks(Path::new("/proc/self/task"))? {
        // A thread may have ended meanwhile.
        let (Ok(name), Some(nanos)) = (fs::read_to_string(task.join("comm")), on_processor(&task)) else {
            continue;
        };
        *ran.entry(name.trim_end().to_string()).or_default() += nanos;
    }
    Ok(ran)
}

/// Nanoseconds that all threads of a process have run.
///
/// # Errors
///
/// As of [`threads`]; or there is no such process.
pub fn process(pid: u32) -> Result<u64, String> {
    let tasks = tasks(Path::new(&format!("/proc/{pid}/task")))?;
    Ok(tasks.iter().filter_map(|task| on_processor(task)).sum())
}

/// Ticks of the kernel's clock in which processors of this machine were busy, in which they could have been, and in which they
/// were so for this process.
///
/// # Errors
///
/// The kernel does not tell.
pub fn ticks() -> Result<[u64; 3], String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let machine = read("/proc/stat")?;
    let fields = machine.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what guests run is in the first two.
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
        return Err("/proc/stat: is not as expected".into());
    };
    let busy = user + nice + system + irq + softirq + steal;
    let own = read("/proc/self/stat")?;
    // Behind the name, which may hold anything: user and system time are the 12th and 13th field.
    let own = own.rsplit(')').next().unwrap_or_default().split_whitespace();
    let own: u64 = own.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok([busy, busy + idle + iowait, own])
}

/// Bytes of a process in memory now, and the most that there were.
///
/// # Errors
///
/// There is no such process.
pub fn memory(pid: u32) -> Result<(u64, u64), String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let field = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| format!("{path}: has no {key}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

fn tasks(place: &Path) -> Result<Vec<std::path::PathBuf>, String> {
    let entries = fs::read_dir(place).map_err(|e| format!("{}: {e}", place.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn on_processor(task: &Path) -> Option<u64> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_this_process() {
        // Of one thread only: others of this process begin and end as tests do.
        let name = "usage-measured";
        let busy = || {
            let ran = || threads().expect("threads").get(name).copied().unwrap_or(0);
            let before = ran();
            // What has run is counted at ticks of the clock at the latest.
            while ran() <= before {
                std::hint::black_box((0..300_000_u64).fold(1_u64, |a, b| a.wrapping_mul(31).wrapping_add(b)));
            }
            let (one, all) = (ran(), process(std::process::id()).expect("this process"));
            assert!(all >= one, "{all} ns of all threads, {one} of one of them");
        };
        let thread = std::thread::Builder::new().name(name.to_string()).spawn(busy).expect("a thread");
        thread.join().expect("its time rises");
        let [busy, all, own] = ticks().expect("this machine");
        assert!(own <= busy && busy <= all, "{own} of {busy} of {all} ticks");
        let (now, most) = memory(std::process::id()).expect("this process");
        assert!(now > 1 << 20 && most >= now);
    }
}

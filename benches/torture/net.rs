//! A network of our own on this machine: each server in a network namespace, all on one bridge.
//!
//! The whole torture runs in unnamed namespaces (network, mounts, processes), so that nothing of it is left when it ends,
//! however it ends: the kernel takes everything away with the last process.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Tells that the namespaces are there already.
const INSIDE: &str = "BANK_TORTURE_INSIDE";

const UNSHARE: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// The bridge's own address, where the clients and the proxy are.
pub const HERE: &str = "10.77.0.254";

pub fn address(server: u16) -> String {
    format!("10.77.0.{server}")
}

/// Starts this program again inside namespaces of its own, and ends with it; comes back only there.
///
/// # Errors
///
/// This machine does not allow that, or a tool is missing.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    for (tool, package) in
        [("unshare", "util-linux"), ("ip", "iproute2"), ("nft", "nftables"), ("mount", "mount")]
    {
        let found = Command::new(tool).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|e| format!("{tool} is missing ({e}); install the package {package}"))?;
    }
    let mut flags = UNSHARE.to_vec();
    // Whoever is not root may still be root of a namespace, where the system allows it.
    if !rustix::process::geteuid().is_root() {
        flags.push("--map-root-user");
    }
    let probe = Command::new("unshare").args(&flags).arg("true").output().map_err(|e| e.to_string())?;
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr);
        return Err(format!("namespaces need root here: {}", why.trim()));
    }
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let error = Command::new("unshare")
        .args(&flags)
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("unshare: {error}"))
}

/// Runs a command to its end; returns what it said, or what went wrong.
pub fn run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .map_err(|e| format!("{line}: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        return Err(format!("{line}: {}", said.trim()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into())
}

/// Namespaces `n1` to `n{servers}`, each with one interface on the bridge.
pub fn build(servers: u16) -> Result<(), String> {
    run("mount -t tmpfs tmpfs /run")?;
    std::fs::create_dir_all("/run/netns").map_err(|e| format!("/run/netns: {e}"))?;
    run("ip link set lo up")?;
    run("ip link add bridge type bridge")?;
    run(&format!("ip addr add {HERE}/24 dev bridge"))?;
    run("ip link set bridge up")?;
    for server in 1..=servers {
        run(&format!("ip netns add n{server}"))?;
        run(&format!("ip link add v{server} type veth peer name eth0 netns n{server}"))?;
        run(&format!("ip link set v{server} master bridge"))?;
        run(&format!("ip -n n{server} addr add {}/24 dev eth0", address(server)))?;
        run(&format!("ip -n n{server} link set eth0 up"))?;
        run(&format!("ip -n n{server} link set lo up"))?;
        link(server, true)?;
    }
    Ok(())
}

/// Pulls a server's cable, or puts it back.
pub fn link(server: u16, up: bool) -> Result<(), String> {
    run(&format!("ip link set v{server} {}", if up { "up" } else { "down" })).map(drop)
}

/// Whether a server's cable is pulled.
pub fn is_down(server: u16) -> Result<bool, String> {
    let line = format!("ip -o link show dev v{server} up");
    Ok(run(&line)?.is_empty())
}

/// What a server's namespace does not let in.
#[derive(Clone, Copy)]
pub enum Drop {
    /// Everything that this other server sends: one way only.
    From(u16),
    /// So many of a hundred packets, whoever sends them.
    Share(u8),
}

/// Drops packets on their way in.
pub fn drop_packets(server: u16, drop: Drop) -> Result<(), String> {
    let what = match drop {
        Drop::From(other) => format!("ip saddr {}", address(other)),
        Drop::Share(percent) => format!("numgen random mod 100 < {percent}"),
    };
    let rules = format!(
        "table inet torture {{\n chain in {{\n type filter hook input priority 0;\n {what} counter drop\n }}\n}}\n"
    );
    nft(server, &rules)
}

/// Lets everything in again; tells how many packets were dropped.
pub fn drop_nothing(server: u16) -> Result<u64, String> {
    let text = run(&format!("ip netns exec n{server} nft list ruleset"))?;
    let packets = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    nft(server, "flush ruleset\n")?;
    Ok(packets.unwrap_or(0))
}

fn nft(server: u16, rules: &str) -> Result<(), String> {
    let mut child = Command::new("ip")
        .args(["netns", "exec", &format!("n{server}"), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("nft: {e}"))?;
    child.stdin.take().expect("it is piped").write_all(rules.as_bytes()).map_err(|e| format!("nft: {e}"))?;
    let out = child.wait_with_output().map_err(|e| format!("nft: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(format!("nft on {rules}: {}", said.trim())) }
}

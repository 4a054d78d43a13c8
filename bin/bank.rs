//! The `bank` executable: argument parsing only. What the commands do lives in the library, where it can be tested.

mod bench;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use shardpaxosbank::config::{Keep, Topology};
use shardpaxosbank::runtime::backup;
use shardpaxosbank::runtime::inspect::{self, Look};
use shardpaxosbank::runtime::local::{self, InitArgs};
use shardpaxosbank::runtime::overview;
use shardpaxosbank::runtime::runner::Options;
use shardpaxosbank::runtime::session::{self, Exit, NodeArgs, RunArgs};
use shardpaxosbank::runtime::teller;
use shardpaxosbank::soak::{self, SimArgs};
use shardpaxosbank::types::{AccountId, Transfer, TxnId};

/// A fault-tolerant, sharded bank: Multi-Paxos per shard, two-phase commit across shards.
#[derive(Parser)]
#[command(name = "bank", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start all servers in this process and run the transactions of a set file on them.
    Run(Run),
    /// Run one server as a process of its own.
    Node(Node),
    /// Write a configuration for a new bank, and make its servers' directories.
    Init(Init),
    /// Start all servers of a configuration as processes of this machine, and wait until each cluster has a leader.
    Up(Local),
    /// Stop the servers that `bank up` started.
    Down(Local),
    /// Show every server of a configuration, as it is now; needs allow_admin. Exit code 1 if one does not answer.
    Status {
        /// The bank's configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Use a bank whose servers run elsewhere; without a request, from a prompt, which needs allow_admin.
    Client {
        /// The bank's configuration file.
        #[arg(long)]
        config: PathBuf,
        #[command(subcommand)]
        wish: Option<Wish>,
    },
    /// Look into the write-ahead log of a data directory, whether its server runs or not; nothing is changed.
    #[command(subcommand)]
    Wal(WalCommand),
    /// List the committed transactions of a data directory, in log order.
    Log {
        /// A server's data directory, or one that holds several.
        dir: PathBuf,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Copy the state of a bank, whose servers run or not, to a new directory; nothing else is changed.
    Backup {
        /// The servers' data directories, or directories that hold some: of each cluster a majority.
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// The new directory.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Make new data directories for all servers of a bank from a copy of it.
    Restore {
        /// What `bank backup` wrote.
        backup: PathBuf,
        /// The new directory, with one in it for each server.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// The new bank's cluster id, 32 hexadecimal digits; drawn at random if not given.
        #[arg(long, value_name = "HEX", value_parser = cluster_id)]
        cluster_id: Option<u128>,
    },
    /// Run the servers' own code in a simulated world that tries to make them lose money.
    Sim(Sim),
    /// Drive a bank as hard as it goes, and measure it.
    Bench(Box<bench::Bench>),
}

#[derive(Subcommand)]
enum WalCommand {
    /// Verify every byte of every record and snapshot; name every fault. Exit code 1 if there is one.
    Verify {
        /// A server's data directory, or one that holds several.
        dir: PathBuf,
    },
    /// Print every record.
    Dump {
        /// A server's data directory, or one that holds several.
        dir: PathBuf,
        /// Only records of the slots A to B.
        #[arg(long, value_name = "A..B", value_parser = slots)]
        slot: Option<(u64, u64)>,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
}

fn cluster_id(text: &str) -> Result<u128, String> {
    let id = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
    id.ok_or_else(|| "must be 32 hexadecimal digits".into())
}

/// `A..B`, both included, or one slot.
fn slots(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
        _ => Err("must be slots such as 5..9, or 5".into()),
    }
}

#[derive(Args)]
struct Run {
    /// The set file (see the README for its three shapes).
    file: PathBuf,
    /// Clusters, and so shards.
    #[arg(long, default_value_t = Topology::default().clusters, conflicts_with = "config")]
    clusters: u16,
    /// Servers in each cluster; odd.
    #[arg(long, default_value_t = Topology::default().servers_per_cluster, conflicts_with = "config")]
    servers: u16,
    /// Accounts 1 to N, divided among the shards by range.
    #[arg(long, default_value_t = Topology::default().accounts, conflicts_with = "config")]
    accounts: u64,
    /// Units with which every account is opened.
    #[arg(long, default_value_t = Topology::default().initial_balance, conflicts_with = "config")]
    balance: u64,
    /// Transactions that run at the same time, at least 1.
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=65536))]
    in_flight: u32,
    /// Do not hold back transactions that share an account with one in flight.
    #[arg(long)]
    race: bool,
    /// Start every set as if on fresh data directories.
    #[arg(long)]
    reset_each_set: bool,
    /// Keep the servers' directories here and continue from them; without it a temporary directory is used.
    #[arg(long, conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// Decided values from one snapshot to the next, in MiB; at least four times the balances of a shard, 8 bytes each.
    #[arg(long, default_value_t = Keep::default().snapshot_mib, conflicts_with = "config")]
    snapshot_mib: u32,
    /// Log that is kept although no restart needs it, in MiB.
    #[arg(long, default_value_t = Keep::default().audit_mib, conflicts_with = "config")]
    audit_mib: u32,
    /// Days after which such log goes; 0: it may become as old as it will.
    #[arg(long, default_value_t = Keep::default().audit_days, conflicts_with = "config")]
    audit_days: u32,
    /// Remove what is in the data directory and start anew.
    #[arg(long, requires = "data_dir")]
    fresh: bool,
    /// Drive servers that run as processes, instead of starting own ones.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Run all sets without a prompt, also on a terminal.
    #[arg(long)]
    no_interactive: bool,
    /// Print one JSON object per set and nothing else (data/run-output.schema.json).
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Node {
    /// The bank's configuration file, the same for all servers and clients.
    #[arg(long)]
    config: PathBuf,
    /// Which of its servers this is, such as S4.
    #[arg(long)]
    server: String,
    /// This server's directory.
    #[arg(long)]
    data_dir: PathBuf,
    /// Format the directory first if it holds no server yet: once in the life of a server.
    #[arg(long)]
    format: bool,
    /// The directory holds no server yet, and stands for one that was lost or damaged: format it, catch up from the others,
    /// and vote again when they have let this server in.
    #[arg(long, conflicts_with = "format")]
    rejoin: bool,
    /// Listen on this host instead of the one in the configuration, such as 0.0.0.0 inside a container; the ports stay.
    #[arg(long, value_name = "HOST")]
    listen: Option<String>,
    /// Write the number of this process here once it listens.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
}

#[derive(Args)]
struct Init {
    /// The new directory, with `cluster.toml` and one directory for each server.
    dir: PathBuf,
    /// Clusters, and so shards.
    #[arg(long, default_value_t = Topology::default().clusters)]
    clusters: u16,
    /// Servers in each cluster; odd.
    #[arg(long, default_value_t = Topology::default().servers_per_cluster)]
    servers: u16,
    /// Accounts 1 to N, divided among the shards by range.
    #[arg(long, default_value_t = Topology::default().accounts)]
    accounts: u64,
    /// Units with which every account is opened.
    #[arg(long, default_value_t = Topology::default().initial_balance)]
    balance: u64,
    /// A host for the servers; given several times, the servers of each cluster are on them in turns, and given as often as
    /// there are servers, each has its own.
    #[arg(long = "host", value_name = "HOST", default_value = "127.0.0.1")]
    hosts: Vec<String>,
    /// The first server on a host has this port and one more, 100 above for clients, 200 above for its HTTP pages, and so on.
    #[arg(long, default_value_t = 7000)]
    base_port: u16,
    /// Write the configuration only; the directories are made elsewhere, by `bank node --format`.
    #[arg(long)]
    config_only: bool,
}

#[derive(Subcommand)]
enum Wish {
    /// Move money. Exit code 0: committed; 1: aborted, with the reason; 3: it may or may not take effect.
    Transfer {
        from: u64,
        to: u64,
        #[arg(allow_negative_numbers = true)]
        amount: i64,
        /// SESSION:SEQUENCE, so that it can be sent again: the same transfer under the same id takes effect once.
        #[arg(long, value_parser = transaction)]
        id: Option<TxnId>,
    },
    /// Open a session, whose ids transfers may have, and print its name.
    Session,
    /// Print what became of the transfer with an id: committed, aborted and why, in doubt, finished, or never seen.
    Txn {
        /// SESSION:SEQUENCE
        #[arg(value_parser = transaction)]
        id: TxnId,
    },
    /// Print the balance of an account.
    Balance {
        account: u64,
        /// Whether it must be the newest one, or what each server has applied will do.
        #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
        consistency: Consistency,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Consistency {
    Linearizable,
    Local,
}

fn transaction(text: &str) -> Result<TxnId, String> {
    text.parse().map_err(|()| "an id is SESSION:SEQUENCE as in D1-2:7, with a sequence from 1".to_string())
}

impl Wish {
    fn wish(self) -> teller::Wish {
        match self {
            Wish::Transfer { from, to, amount, id } => {
                teller::Wish::Transfer(Transfer { from: AccountId(from), to: AccountId(to), amount }, id)
            }
            Wish::Session => teller::Wish::Session,
            Wish::Txn { id } => teller::Wish::Txn(id),
            Wish::Balance { account, consistency: Consistency::Linearizable } => {
                teller::Wish::Balance(AccountId(account))
            }
            Wish::Balance { account, consistency: Consistency::Local } => {
                teller::Wish::LocalBalances(AccountId(account))
            }
        }
    }
}

#[derive(Args)]
struct Local {
    /// The bank's configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Where the servers' directories are; if not given, beside the configuration.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Prints what was done, or why it was not.
fn say(result: Result<String, String>, failure: Exit) -> Exit {
    match result {
        Ok(text) => {
            println!("{text}");
            Exit::Success
        }
        Err(what) => {
            eprintln!("error: {what}");
            failure
        }
    }
}

#[derive(Args)]
struct Sim {
    /// Run this one seed and tell what it was; with --log, everything that happened.
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "jobs", "keep_going", "progress"])]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long, requires = "seed")]
    log: bool,
    /// Run the seeds A to B - 1.
    #[arg(long, value_name = "A..B", value_parser = soak::parse_range, default_value = "0..10000")]
    seeds: (u64, u64),
    /// Begin nothing new after so many minutes.
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// Runs at the same time; as many as there are cores if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Note here how far the seeds have come, and go on from there.
    #[arg(long)]
    progress: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= 100_000.0 => Ok(minutes),
        _ => Err("must be a number of minutes above 0, at most 100000".into()),
    }
}

impl Sim {
    fn run(self) -> Exit {
        let args = match self.seed {
            Some(seed) => SimArgs::Seed { seed, log: self.log },
            None => SimArgs::Seeds {
                range: self.seeds,
                minutes: self.minutes,
                jobs: self.jobs.map(usize::from),
                keep_going: self.keep_going,
                progress: self.progress,
            },
        };
        match soak::command(args) {
            Ok(true) => Exit::Success,
            Ok(false) => Exit::Failure,
            Err(e) => {
                eprintln!("{e}");
                Exit::Usage
            }
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return bad_arguments(&e),
    };
    let default = if matches!(cli.command, Command::Node(_)) { "info" } else { "error" };
    shardpaxosbank::runtime::logs::begin(default);
    let exit = match cli.command {
        Command::Run(run) => session::run(RunArgs {
            file: run.file,
            topology: Topology {
                clusters: run.clusters,
                servers_per_cluster: run.servers,
                accounts: run.accounts,
                initial_balance: run.balance,
            },
            options: Options {
                in_flight: run.in_flight as usize,
                race: run.race,
                reset_each_set: run.reset_each_set,
                progress: !run.json,
            },
            keep: Keep {
                snapshot_mib: run.snapshot_mib,
                audit_mib: run.audit_mib,
                audit_days: run.audit_days,
            },
            data_dir: run.data_dir,
            fresh: run.fresh,
            config: run.config,
            interactive: !run.no_interactive && !run.json && session::at_terminal(),
            json: run.json,
        }),
        Command::Node(node) => session::node(NodeArgs {
            config: node.config,
            server: node.server,
            data_dir: node.data_dir,
            format: node.format,
            rejoin: node.rejoin,
            listen: node.listen,
            pid_file: node.pid_file,
        }),
        Command::Init(init) => {
            let topology = Topology {
                clusters: init.clusters,
                servers_per_cluster: init.servers,
                accounts: init.accounts,
                initial_balance: init.balance,
            };
            let Init { dir, hosts, base_port, config_only, .. } = init;
            say(local::init(&InitArgs { dir, topology, hosts, base_port, config_only }), Exit::Usage)
        }
        Command::Status { config, json } => overview::status(&config, json),
        Command::Client { config, wish: Some(wish) } => teller::client(&config, &wish.wish()),
        Command::Client { config, wish: None } => session::prompt(&config),
        Command::Up(Local { config, data_dir }) => say(local::up(&config, data_dir), Exit::Failure),
        Command::Down(Local { config, data_dir }) => say(local::down(&config, data_dir), Exit::Failure),
        Command::Wal(WalCommand::Verify { dir }) => inspect::command(&dir, &Look::Verify),
        Command::Wal(WalCommand::Dump { dir, slot, json }) => {
            inspect::command(&dir, &Look::Dump { slots: slot, json })
        }
        Command::Log { dir, json } => inspect::command(&dir, &Look::Log { json }),
        Command::Backup { dirs, to } => backup::backup(&dirs, &to),
        Command::Restore { backup: from, to, cluster_id } => backup::restore(&from, &to, cluster_id),
        Command::Sim(sim) => sim.run(),
        Command::Bench(bench) => shardpaxosbank::bench::run(&bench.args()),
    };
    ExitCode::from(exit as u8)
}

/// Help goes out as it is; what is wrong with an argument is said in one line, like every other error.
fn bad_arguments(e: &clap::Error) -> ExitCode {
    if !e.use_stderr() {
        print!("{e}");
        return ExitCode::SUCCESS;
    }
    let text = e.to_string();
    let what: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    eprintln!("{}; `bank help` lists what is accepted", what.join(" "));
    ExitCode::from(Exit::Usage as u8)
}

//! Random set files for end-to-end tests.
//!
//! One seed gives one file, on every machine and for ever: the generator is written out here (splitmix64) because the
//! streams of library generators may change between versions, and a failing seed must stay a failing seed.

use std::fmt::Write;

use crate::config::Topology;

/// What may occur in a random file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetFileOptions {
    /// Sets that the rows are spread over; at least 1.
    pub sets: usize,
    /// Reads of balances.
    pub reads: bool,
    /// `F` and `R` rows, and sets that start with servers down. Some take a cluster its majority.
    pub failures: bool,
    /// Transfers that every server must refuse: amounts of zero and below, one account twice, unknown accounts.
    pub invalid: bool,
    /// Draw accounts from this many of each shard only, so that rows conflict and balances run dry.
    pub hot_accounts: Option<u64>,
    /// Amounts are 1 to this (at least 1).
    pub max_amount: u64,
}

impl Default for SetFileOptions {
    fn default() -> Self {
        SetFileOptions {
            sets: 3,
            reads: true,
            failures: true,
            invalid: true,
            hot_accounts: None,
            max_amount: 10,
        }
    }
}

/// The text of a set file with this many rows, in one of the three shapes, chosen by the seed.
pub fn random_set_file(seed: u64, topology: &Topology, rows: usize, options: &SetFileOptions) -> String {
    let mut rng = SplitMix64::new(seed);
    let shape = [Shape::Contacts, Shape::Header, Shape::Tabs][rng.below(3) as usize];
    let mut text = String::new();
    match shape {
        Shape::Contacts => {}
        Shape::Header => text.push_str("Set Number,Transactions,Live Nodes\n"),
        Shape::Tabs => text.push_str("Set Number\tTransactions\tLive Nodes\n"),
    }
    let sets = options.sets.max(1);
    for set in 0..sets {
        let first = rows * set / sets;
        let last = rows * (set + 1) / sets;
        let down: Vec<u16> = topology.servers().map(|s| s.0).filter(|_| is_down(&mut rng, options)).collect();
        let up: Vec<u16> = topology.servers().map(|s| s.0).filter(|s| !down.contains(s)).collect();
        for row in first..last {
            let command = random_command(&mut rng, topology, options, shape);
            let lead = row == first;
            write_row(&mut text, shape, lead, set + 1, &command, &up, topology);
        }
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Contacts,
    Header,
    Tabs,
}

impl Shape {
    fn server(self, number: u16) -> String {
        match self {
            Shape::Contacts => format!("S{number}"),
            Shape::Header | Shape::Tabs => format!("n{number}"),
        }
    }

    fn list(self, servers: &[u16]) -> String {
        let names: Vec<String> = servers.iter().map(|s| self.server(*s)).collect();
        format!("[{}]", names.join(", "))
    }
}

/// One server in ten: most sets miss one or none, some lose the majority of a cluster.
fn is_down(rng: &mut SplitMix64, options: &SetFileOptions) -> bool {
    options.failures && rng.one_in(10)
}

fn random_command(
    rng: &mut SplitMix64,
    topology: &Topology,
    options: &SetFileOptions,
    shape: Shape,
) -> String {
    if options.failures && rng.one_in(15) {
        let server = shape.server(rng.below(topology.server_count() as u64) as u16 + 1);
        // Recoveries are the more frequent, or long sets would end with every server down.
        return if rng.below(5) < 2 { format!("F({server})") } else { format!("R({server})") };
    }
    if options.reads && rng.one_in(8) {
        let unknown = options.invalid && rng.one_in(20);
        let account = if unknown { topology.accounts + 1 } else { random_account(rng, topology, options) };
        return format!("({account})");
    }
    let mut from = random_account(rng, topology, options);
    let mut to = random_account(rng, topology, options);
    // By chance this leaves one account twice, which only an invalid row should.
    for _ in 0..64 {
        if from != to {
            break;
        }
        to = random_account(rng, topology, options);
    }
    let mut amount = (rng.below(options.max_amount.max(1)) + 1).to_string();
    if options.invalid && rng.one_in(12) {
        match rng.below(5) {
            0 => amount = "0".to_string(),
            1 => amount = format!("-{amount}"),
            2 => to = from,
            3 => from = topology.accounts + 1 + rng.below(5),
            _ => to = if rng.one_in(2) { 0 } else { topology.accounts + 1 },
        }
    }
    format!("({from}, {to}, {amount})")
}

fn random_account(rng: &mut SplitMix64, topology: &Topology, options: &SetFileOptions) -> u64 {
    let shard = crate::types::ShardId(rng.below(u64::from(topology.clusters)) as u16 + 1);
    let range = topology.accounts_of(shard);
    let size = range.end() - range.start() + 1;
    range.start() + rng.below(options.hot_accounts.unwrap_or(size).clamp(1, size))
}

fn write_row(
    text: &mut String,
    shape: Shape,
    lead: bool,
    set: usize,
    command: &str,
    up: &[u16],
    topology: &Topology,
) {
    let list = shape.list(up);
    let written = match shape {
        Shape::Tabs => writeln!(text, "{set}\t{command}\t{list}"),
        Shape::Header if lead => writeln!(text, "{set},\"{command}\",\"{list}\""),
        Shape::Header => writeln!(text, ",\"{command}\","),
        Shape::Contacts if lead => {
            let per = usize::from(topology.servers_per_cluster);
            // The last live server of each cluster: unlike the first one, it leads only if the hint is heeded.
            let contacts: Vec<u16> = (0..usize::from(topology.clusters))
                .filter_map(|c| up.iter().copied().rfind(|s| (usize::from(*s) - 1) / per == c))
                .collect();
            writeln!(text, "{set},\"{command}\",\"{list}\",\"{}\"", shape.list(&contacts))
        }
        Shape::Contacts => writeln!(text, ",\"{command}\",,"),
    };
    written.expect("writing to a string cannot fail");
}

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64 { state: seed }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform below `bound` (not 0), up to a bias that is far below what a test could notice.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

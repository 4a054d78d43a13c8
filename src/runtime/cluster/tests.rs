//! Starts that are refused.

use super::*;

/// Three servers that were formatted as the only ones of their clusters, and the directory that they live in.
fn three_clusters() -> (TempDir, Topology) {
    let data = tempfile::tempdir().expect("a directory");
    let topology = Topology { clusters: 3, servers_per_cluster: 1, accounts: 12, initial_balance: 10 };
    drop(open_logs(topology, data.path()).expect("an empty directory is formatted"));
    (data, topology)
}

fn entries(dir: &Path) -> Vec<String> {
    let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = std::fs::read_dir(dir).expect("a directory").map(name).collect();
    names.sort();
    names.into_iter().map(|name| name.display().to_string()).collect()
}

/// A server was started without `--format` on a directory that did not exist, and was refused; the directory was there
/// afterwards, with a lock file in it.
#[test]
fn a_directory_that_is_not_there_is_refused_and_not_made() {
    let data = tempfile::tempdir().expect("a directory");
    let dir = data.path().join("S1");
    let refused =
        open_log(&dir, NodeId(1), Topology::default(), None, Blank::Refuse).expect_err("it is refused");
    assert!(refused.contains("S1") && refused.contains("--format"), "{refused}");
    assert_eq!(entries(data.path()), Vec::<String>::new());
}

/// With `--clusters 4` the directory of S4 is missing, but that is not what is wrong: the directory belongs to a bank of
/// three. S4's was made on the way, and its absence was blamed.
#[test]
fn another_number_of_clusters_is_named_and_nothing_is_made() {
    let (data, topology) = three_clusters();
    let four = Topology { clusters: 4, ..topology };
    let refused = open_logs(four, data.path()).expect_err("it is refused");
    assert!(refused.contains("topology") && !refused.contains("--fresh"), "{refused}");
    assert_eq!(entries(data.path()), ["S1", "S2", "S3"]);
    // A server that is really missing is still named.
    std::fs::remove_dir_all(data.path().join("S2")).expect("it is removed");
    let refused = open_logs(topology, data.path()).expect_err("it is refused");
    assert!(refused.contains("S2") && refused.contains("--fresh"), "{refused}");
    assert_eq!(entries(data.path()), ["S1", "S3"]);
}

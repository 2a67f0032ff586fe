//! The house rules that a machine can check: who may use whom, where `unsafe` and certain crates
//! may be, how long files and lines are, and that every promise is guarded by a test.
//!
//! The tables here are the rules; `docs/architecture.md` has the reasons. An exception has its
//! reason beside it, and a limit that a file exceeds may only go down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the library a module may name. Whoever needs a new arrow argues for it here.
const LAYERS: &[(&str, &str)] = &[
    // Plain things that all may use.
    ("types", ""),
    ("error", ""),
    ("chunks", ""),
    ("marks", ""),
    ("sync", ""),
    ("payload_id", "error"),
    ("retention", "error"),
    ("config", "error retention types"),
    ("stats", "payload_id types"),
    ("buf", "types"),
    ("mutation", "payload_id retention types"),
    // State: sync and pure. The log never sees the map, the map never sees bytes.
    ("log", "buf marks mutation payload_id retention types"),
    ("map", "marks mutation payload_id retention types"),
    ("residency", "log types"),
    ("cache", "chunks marks payload_id sync types"),
    // The one door to the kernel.
    ("io", "buf config error marks types"),
    ("superblock", "config error io log types"),
    // The remote: a bucket, and the one who speaks to it. Neither sees the map or the disk.
    ("remote", "config error marks sync"),
    (
        "upload",
        "config error io log marks remote stats sync types",
    ),
    ("world", "config error io types upload"),
    // Flows: they join state and driver.
    (
        "shard",
        "buf cache chunks config error io log map marks mutation payload_id remote residency \
         retention stats superblock sync types upload",
    ),
    (
        "store",
        "cache chunks config error io marks payload_id retention shard stats superblock sync \
         types upload world",
    ),
    // The simulated universe opens a store in a world of its own.
    (
        "sim",
        "buf chunks config error io marks payload_id remote stats store types upload world",
    ),
    // Doors for the fuzz targets, in no build but theirs: they reach into everything that decodes.
    (
        "fuzzing",
        "buf cache chunks config error io log map mutation payload_id shard sim store superblock \
         sync types upload world",
    ),
];

/// The parts of the command: they name each other as it stands here, and of the library its public
/// interface only, as any other program.
const FRONT_ENDS: &[(&str, &str)] = &[("mount", ""), ("nbd", ""), ("cli", "mount nbd")];

/// What `lib.rs` re-exports, by the module that it comes from.
const ROOT_NAMES: &[(&str, &str)] = &[
    ("Chunks", "chunks"),
    ("Config", "config"),
    ("DriverKind", "config"),
    ("RemoteConfig", "config"),
    ("RetentionPolicy", "retention"),
    ("S3Config", "config"),
    ("Error", "error"),
    ("ErrorKind", "error"),
    ("Result", "error"),
    ("PayloadId", "payload_id"),
    ("Stats", "stats"),
    ("Store", "store"),
];

/// The files that may say `unsafe`: memory for the kernel, and the ring, which is one module in
/// several files.
const UNSAFE: &[&str] = &["src/buf.rs", "src/io/uring.rs", "src/io/uring/"];

/// Crates that only some places may name, so that they can be exchanged there.
const CRATES: &[(&str, &[&str])] = &[
    ("io_uring", &["src/io/"]),
    ("glommio", &["src/io/"]),
    ("tokio_uring", &["src/io/"]),
    ("aws_sdk_s3", &["src/remote/s3"]),
    // The command's benchmark is read more closely than the engine's own figures: three digits.
    ("hdrhistogram", &["src/stats/latency.rs", "src/cli/bench/"]),
    ("clap", &["src/cli/"]),
    ("fuser", &["src/mount/"]),
    ("indicatif", &["src/cli/"]),
];

const COLUMNS_MAX: usize = 100;

/// Lines of a file before its tests.
const LINES_MAX: usize = 600;

/// Files that are longer, with what they are held to until they are divided.
const LONGER: &[(&str, usize)] = &[
    ("src/sim/client.rs", 700),
    ("src/shard/replay.rs", 640),
    ("src/shard/mod.rs", 615),
    ("src/sim/run.rs", 665),
];

/// Clauses that no test can quote yet, and why.
const NOT_GUARDED: &[(u32, &str)] = &[];

struct Source {
    /// Relative to the package, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Whether all of the file is tests.
    fn is_tests(&self) -> bool {
        let in_src = self.path.starts_with("src/");
        !in_src || self.path.ends_with("/tests.rs") || self.path.contains("/suite")
    }

    /// What stands before the tests.
    fn code(&self) -> &str {
        let end = self.text.find("#[cfg(test)]\nmod ");
        &self.text[..end.unwrap_or(self.text.len())]
    }

    /// The code without comments.
    fn bare_code(&self) -> String {
        let lines = self.code().lines();
        let bare = lines.map(|line| line.split("//").next().unwrap_or_default());
        bare.collect::<Vec<_>>().join("\n")
    }

    /// The module of the library that it belongs to; `None` for the command.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let name = inside.split('/').next()?;
        let name = name.strip_suffix(".rs").unwrap_or(name);
        let is_command = FRONT_ENDS.iter().any(|(part, _)| *part == name);
        (!is_command && !["lib", "main"].contains(&name)).then_some(name)
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for dir in ["src", "tests", "examples", "benches"] {
        collect(&root().join(dir), &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| Source {
        path: path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(read).collect()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Fails with all complaints at once.
#[track_caller]
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn is_word(text: &str, at: usize, len: usize) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let before = text[..at].chars().next_back();
    let after = text[at + len..].chars().next();
    !before.is_some_and(is_part) && !after.is_some_and(is_part)
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word)
        .any(|(at, _)| is_word(text, at, word.len()))
}

/// The first names of the paths that begin with `crate::`, groups included.
fn crate_names(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => names.insert(leading_name(rest)),
            Some(group) => {
                names.extend(group_names(group));
                true
            }
        };
    }
    names.remove("");
    names
}

fn leading_name(text: &str) -> String {
    text.chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect()
}

/// The first names in `a::b, c::{d, e}, f}`.
fn group_names(group: &str) -> Vec<String> {
    let mut names = vec![leading_name(group.trim_start())];
    let mut depth = 0;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(leading_name(group[at + 1..].trim_start())),
            _ => {}
        }
    }
    names
}

#[test]
fn arrows_point_one_way() {
    let roots: BTreeMap<&str, &str> = ROOT_NAMES.iter().copied().collect();
    let layers: BTreeMap<&str, BTreeSet<&str>> = LAYERS
        .iter()
        .map(|(module, uses)| (*module, uses.split_whitespace().collect()))
        .collect();
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(module) = source.module().filter(|_| !source.is_tests()) else {
            continue;
        };
        let Some(allowed) = layers.get(module) else {
            complaints.push(format!("{}: the module is not in the table", source.path));
            continue;
        };
        for name in crate_names(&source.bare_code()) {
            let used = *roots.get(name.as_str()).unwrap_or(&name.as_str());
            if used != module && !allowed.contains(used) {
                complaints.push(format!("{}: new arrow {module} -> {used}", source.path));
            }
        }
    }
    report(complaints);
}

#[test]
fn the_table_has_no_circle() {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for (module, uses) in LAYERS {
        for used in uses.split_whitespace() {
            assert!(
                done.contains(used),
                "{module} stands before {used}, which it uses"
            );
        }
        done.insert(module);
    }
}

#[test]
fn the_command_uses_the_public_interface_only() {
    let mut complaints = Vec::new();
    for (part, uses) in FRONT_ENDS {
        let allowed: Vec<&str> = uses.split_whitespace().chain([*part]).collect();
        for source in sources() {
            if !source.is_in(&[&format!("src/{part}/"), &format!("src/{part}.rs")]) {
                continue;
            }
            for name in crate_names(&source.bare_code()) {
                if !allowed.contains(&name.as_str()) {
                    complaints.push(format!("{}: it names crate::{name}", source.path));
                }
            }
        }
    }
    report(complaints);
}

#[test]
fn unsafe_is_where_it_belongs() {
    let mut complaints = Vec::new();
    for source in sources() {
        if !source.is_tests() && has_word(&source.bare_code(), "unsafe") && !source.is_in(UNSAFE) {
            complaints.push(format!("{}: unsafe", source.path));
        }
    }
    report(complaints);
}

#[test]
fn crates_are_named_where_they_belong() {
    let mut complaints = Vec::new();
    for source in sources() {
        let code = source.bare_code();
        for (name, places) in CRATES {
            let is_used = code.match_indices(name).any(|(at, _)| {
                is_word(&code, at, name.len()) && code[at + name.len()..].starts_with("::")
            });
            if is_used && source.path.starts_with("src/") && !source.is_in(places) {
                complaints.push(format!("{}: it names {name}", source.path));
            }
        }
    }
    report(complaints);
}

#[test]
fn files_say_what_they_are() {
    let headless = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "));
    report(
        headless
            .map(|source| format!("{}: no `//!` head", source.path))
            .collect(),
    );
}

#[test]
fn files_and_lines_are_short() {
    let longer: BTreeMap<&str, usize> = LONGER.iter().copied().collect();
    let mut complaints = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                complaints.push(format!("{}:{}: {columns} columns", source.path, index + 1));
            }
        }
        let lines = source.code().lines().count();
        let limit = *longer.get(source.path.as_str()).unwrap_or(&LINES_MAX);
        if !source.is_tests() && lines > limit {
            complaints.push(format!("{}: {lines} lines before its tests", source.path));
        }
    }
    report(complaints);
}

#[test]
fn nothing_is_left_for_later() {
    // Written apart, so that this file passes.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let mut complaints = Vec::new();
    for source in sources() {
        for mark in marks {
            if has_word(&source.text, mark) {
                complaints.push(format!("{}: {mark}", source.path));
            }
        }
    }
    report(complaints);
}

/// The clauses that tests quote: a test's comments stand right above it.
fn quoted_clauses() -> BTreeSet<u32> {
    let mut quoted = BTreeSet::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some((_, clauses)) = line.split_once("// S-") else {
                continue;
            };
            let is_test = |line: &str| ["#[test]", "proptest!"].contains(&line.trim());
            let behind = lines[index..].iter().skip(1);
            let mut behind = behind.skip_while(|line| line.trim_start().starts_with("//"));
            if !behind.next().is_some_and(|line| is_test(line)) {
                continue;
            }
            for part in clauses.split("S-") {
                let digits = part.chars().take_while(char::is_ascii_digit);
                quoted.insert(digits.collect::<String>().parse().unwrap_or(0));
            }
        }
    }
    quoted
}

#[test]
fn every_promise_is_guarded() {
    let promises = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let promised: BTreeSet<u32> = promises
        .lines()
        .filter_map(|line| line.strip_prefix("**S-"))
        .filter_map(|rest| rest.split('.').next()?.parse().ok())
        .collect();
    assert_eq!(promised, (1..=34).collect(), "the clauses are numbered");
    let excused: BTreeSet<u32> = NOT_GUARDED.iter().map(|(clause, _)| *clause).collect();
    let quoted = quoted_clauses();
    let mut complaints = Vec::new();
    for clause in promised.difference(&quoted) {
        if !excused.contains(clause) {
            complaints.push(format!("no test quotes S-{clause}"));
        }
    }
    for clause in quoted.difference(&promised) {
        complaints.push(format!("a test quotes S-{clause}, which is not promised"));
    }
    for clause in quoted.intersection(&excused) {
        complaints.push(format!("S-{clause} is quoted: it needs no excuse any more"));
    }
    report(complaints);
}

#[test]
fn documents_that_the_readme_names_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let code_line = readme.lines().position(|line| line.starts_with("```rust"));
    assert!(code_line.is_some_and(|line| line < 20), "code by line 20");
    for (at, _) in readme.match_indices("](") {
        let target = readme[at + 2..].split(')').next().unwrap();
        assert!(root().join(target).exists(), "{target}");
    }
    for name in [
        "deny.toml",
        "rustfmt.toml",
        "clippy.toml",
        ".ci/run",
        "Cargo.lock",
    ] {
        assert!(root().join(name).exists(), "{name}");
    }
}

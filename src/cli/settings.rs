//! What the engine does not keep: the limits of a store, in a file beside it. `init` notes
//! `capacity` there, and who wants another `read_buffer` writes it into the file.
//!
//! Invariants: the file is read by every command, no command but `init` writes it, whole or not at
//! all and with all other entries as they are, and an unknown or wrong entry in it is an error. An
//! option that is typed comes before it.

use super::args::{Global, Init};
use super::outcome::{Report, UsageError};
use super::units::show_size;
use anyhow::Context;
use ringstore::Config;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Name of the file in the store's directory.
const FILE_NAME: &str = "ringstore.toml";

/// The global options' configuration, with what the store's file adds.
pub(crate) fn load(global: &Global) -> anyhow::Result<Config> {
    let mut config = super::config(global)?;
    let path = config.dir.join(FILE_NAME);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // Whatever is wrong with the directory, opening the store says it better.
        Err(_) => return Ok(config),
    };
    apply(&text, &mut config).with_context(|| format!("wrong file: path={}", path.display()))?;
    Ok(config)
}

fn apply(text: &str, config: &mut Config) -> anyhow::Result<()> {
    let table: toml::Table = text.parse()?;
    for (name, value) in table {
        match (name.as_str(), value.as_integer()) {
            ("capacity", Some(bytes)) if bytes > 0 => config.local_bytes_max = Some(bytes as u64),
            ("read_buffer", Some(bytes)) if bytes >= 0 => config.read_buffer_bytes = bytes as u64,
            _ => anyhow::bail!("unknown or wrong entry: entry={name}"),
        }
    }
    Ok(())
}

/// Makes a store, or checks that the one that is there is as asked for.
pub(crate) async fn init(global: &Global, init: &Init) -> anyhow::Result<Report> {
    let mut config = load(global)?;
    config.shards = init.shards;
    if let Some(bytes) = init.segment_size {
        config.segment_bytes = bytes;
    }
    if let Some(bytes) = init.capacity {
        if i64::try_from(bytes).is_err() {
            return Err(UsageError("--capacity must be below 2^63 bytes").into());
        }
        config.local_bytes_max = Some(bytes);
    }
    let dir = config.dir.clone();
    let store = super::open(config, global).await?;
    let stats = store.stats().await;
    store.close().await?;
    let stats = stats?;
    if let Some(bytes) = init.capacity {
        note(&dir, "capacity", bytes).context("the limit cannot be noted")?;
    }
    let limit = match stats.local_disk_max {
        0 => "unlimited".to_owned(),
        bytes => show_size(bytes),
    };
    let text = format!(
        "{}: {} shards, {limit}, driver {}",
        dir.display(),
        stats.shards,
        stats.driver
    );
    let fields = json!({
        "dir": dir.display().to_string(),
        "shards": stats.shards,
        "local_disk_max": stats.local_disk_max,
        "driver": stats.driver,
    });
    Ok(Report::done(text, fields))
}

/// Sets an entry. The file is replaced by way of another one, so that a crash leaves either.
fn note(dir: &Path, name: &str, value: u64) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(dir.join(FILE_NAME)).unwrap_or_default();
    let mut table: toml::Table = text.parse()?;
    table.insert(name.to_owned(), i64::try_from(value)?.into());
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(table.to_string().as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(dir.join(FILE_NAME))?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_set_beside_the_others() {
        let dir = tempfile::tempdir().unwrap();
        note(dir.path(), "capacity", 1).unwrap();
        note(dir.path(), "read_buffer", 2).unwrap();
        note(dir.path(), "capacity", 3).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let mut config = Config::new("unused");
        apply(&text, &mut config).unwrap();
        let limits = (config.local_bytes_max, config.read_buffer_bytes);
        assert_eq!(limits, (Some(3), 2));
    }

    #[test]
    fn only_known_entries_are_taken() {
        let mut config = Config::new("unused");
        apply("capacity = 4096\n", &mut config).unwrap();
        assert_eq!(config.local_bytes_max, Some(4096));
        apply("read_buffer = 0\n", &mut config).unwrap();
        assert_eq!(config.read_buffer_bytes, 0);
        for text in [
            "capacity = -1",
            "capacity = \"4k\"",
            "read_buffer = -1",
            "other = 1",
            "capacity",
        ] {
            assert!(apply(text, &mut config).is_err(), "{text}");
        }
    }
}

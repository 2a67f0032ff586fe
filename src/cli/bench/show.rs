//! The table of a measurement, and the footer without which its figures mean nothing.

use super::tally::{PERCENTILES, Tally, quantile};
use crate::cli::machine;
use crate::cli::units::{show_count, show_size, show_time};
use comfy_table::{CellAlignment, Table, presets};
use ringstore::Stats;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// One line of the table.
pub(crate) struct Row<'a> {
    pub(crate) name: String,
    pub(crate) tally: &'a Tally,
    /// In which all of it happened.
    pub(crate) span: Duration,
    /// Whether times count from the intended beginnings.
    pub(crate) is_total: bool,
}

/// The table, without a last line feed.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let percentiles = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
    let mut head = vec!["operation", "n", "per s", "bytes/s"];
    head.extend(percentiles);
    let columns = head.len();
    table.set_header(head);
    for row in rows {
        let seconds = row.span.as_secs_f64().max(1e-9);
        let per_second = |count: u64| count as f64 / seconds;
        let bytes = match row.tally.bytes {
            0 => "-".to_owned(),
            bytes => show_size(per_second(bytes) as u64),
        };
        let histogram = match row.is_total {
            true => &row.tally.total,
            false => &row.tally.service,
        };
        let mut cells = vec![
            row.name.clone(),
            row.tally.count.to_string(),
            show_count(per_second(row.tally.count)),
            bytes,
        ];
        for (_, share) in PERCENTILES {
            cells.push(quantile(histogram, share).map_or("-".to_owned(), show_time));
        }
        cells.push(show_time(histogram.max()));
        table.add_row(cells);
    }
    for index in 1..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// Everything that the figures depend on and that a table does not show.
pub(crate) struct Footer {
    kernel: String,
    processor: String,
    file_system: String,
    driver: String,
    shards: u64,
    seed: u64,
    revision: &'static str,
    load: Option<f64>,
}

impl Footer {
    pub(crate) fn new(dir: &Path, stats: &Stats, seed: u64, load: Option<f64>) -> Footer {
        Footer {
            kernel: machine::kernel(),
            processor: machine::processor(),
            file_system: machine::file_system(dir),
            driver: stats.driver.clone(),
            shards: stats.shards,
            seed,
            // Set by whoever builds from a repository and wants it known.
            revision: option_env!("RINGSTORE_GIT_REVISION").unwrap_or("unknown"),
            load,
        }
    }

    /// Whether others used the machine before this began.
    fn is_busy(&self) -> bool {
        self.load.is_some_and(|load| load > machine::cores() as f64)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "linux {}, {}, {}\ndriver {}, {} shards, seed {}, ringstore {}, revision {}",
            self.kernel,
            self.processor,
            self.file_system,
            self.driver,
            self.shards,
            self.seed,
            env!("CARGO_PKG_VERSION"),
            self.revision
        );
        if let Some(load) = self.load.filter(|_| self.is_busy()) {
            let cores = machine::cores();
            text += &format!(
                "\nwarning: the machine was busy before, the figures tell little: \
                 load={load} cores={cores}"
            );
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "kernel": self.kernel,
            "processor": self.processor,
            "file_system": self.file_system,
            "driver": self.driver,
            "shards": self.shards,
            "seed": self.seed,
            "version": env!("CARGO_PKG_VERSION"),
            "revision": self.revision,
            "load": self.load,
            "is_busy": self.is_busy(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_n_cannot_support_is_left_out() {
        let mut tally = Tally::default();
        for _ in 0..100 {
            let span = Duration::from_micros(50);
            tally.record(4096, span, span);
        }
        let row = Row {
            name: "read".to_owned(),
            tally: &tally,
            span: Duration::from_secs(1),
            is_total: false,
        };
        let table = table(&[row]);
        let cells: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        let expected = [
            "read", "100", "100", "400.0", "KiB", "50.0", "us", "50.0", "us", "-", "-", "-",
            "50.0", "us",
        ];
        assert_eq!(cells, expected, "{table}");
    }
}

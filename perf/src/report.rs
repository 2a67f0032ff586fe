//! What is printed: a table of figures, a table of targets, warnings; and the same as JSON.
//!
//! Invariant: a cell that nobody measured is empty, never zero.

use crate::host;
use crate::measure::{Case, Figure, Measured, Verdict};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

/// The columns of figures: how they are called, what they show, with how many decimals.
const COLUMNS: &[(&str, Figure, usize)] = &[
    ("per s", Figure::PerSecond, 0),
    ("MB/s", Figure::BytesPerSecond, 1),
    ("p50 us", Figure::LatencyUs(0.5), 2),
    ("p99 us", Figure::LatencyUs(0.99), 1),
    ("max us", Figure::MaxUs, 0),
    ("CPU us/op", Figure::CpuUsPerOp, 2),
    ("read B/op", Figure::ReadPerOp, 0),
    ("written B/op", Figure::WrittenPerOp, 0),
    ("preempted", Figure::Preempted, 0),
];

/// Spread of the rounds above which a ratio of medians is a guess, in percent.
const SPREAD_MAX: f64 = 25.0;

/// The state of the machine around the run.
pub struct Setting {
    pub machine: String,
    pub load_before: Option<f64>,
    pub fio: Option<String>,
    pub is_quick: bool,
}

fn table(is_markdown: bool, head: Vec<&str>, left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(if is_markdown {
        presets::ASCII_MARKDOWN
    } else {
        presets::NOTHING
    });
    let columns = head.len();
    table.set_header(head);
    for index in left..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn number(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}

/// The figures, a line for each side.
fn figures(cases: &[Case], is_markdown: bool) -> Table {
    let mut head = vec!["row", "case", "side"];
    head.extend(COLUMNS.iter().map(|(name, ..)| *name));
    head.extend(["spread %", "more"]);
    let mut table = table(is_markdown, head, 3);
    for case in cases {
        for side in &case.sides {
            table.add_row(line(case, side));
        }
    }
    table
}

fn line(case: &Case, side: &Measured) -> Vec<String> {
    let mut cells = vec![case.row.to_owned(), case.name.clone(), side.name.clone()];
    for (_, figure, decimals) in COLUMNS {
        let scale = match figure {
            Figure::BytesPerSecond => 1e-6,
            _ => 1.0,
        };
        let value = side.median(*figure);
        cells.push(value.map_or(String::new(), |value| number(value * scale, *decimals)));
    }
    let spread = main_figure(side).and_then(|figure| side.spread(figure));
    cells.push(spread.map_or(String::new(), |spread| number(spread, 0)));
    let more = match &side.error {
        Some(error) => error.clone(),
        None => extras(side)
            .iter()
            .map(|(name, value)| format!("{name}={}", number(*value, 2)))
            .collect::<Vec<_>>()
            .join(" "),
    };
    cells.push(more);
    cells
}

/// What a side's rounds are compared by.
fn main_figure(side: &Measured) -> Option<Figure> {
    [Figure::PerSecond, Figure::Seconds]
        .into_iter()
        .find(|figure| side.median(*figure).is_some())
}

fn extras(side: &Measured) -> Vec<(&'static str, f64)> {
    let names = side.samples.first().into_iter().flat_map(|it| &it.extra);
    names
        .filter_map(|(name, _)| Some((*name, side.median(Figure::Extra(name))?)))
        .collect()
}

fn targets(cases: &[Case], is_markdown: bool) -> Table {
    let head = vec!["row", "case", "target", "reached", "limit", "met"];
    let mut table = table(is_markdown, head, 3);
    for case in cases {
        for verdict in &case.verdicts {
            table.add_row(vec![
                case.row.to_owned(),
                case.name.clone(),
                verdict.text.clone(),
                verdict.value.map_or(String::new(), |it| number(it, 3)),
                number(verdict.limit, 2),
                met(verdict).to_owned(),
            ]);
        }
    }
    table
}

fn met(verdict: &Verdict) -> &'static str {
    match verdict.is_met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    }
}

/// Why the figures may mean nothing.
fn warnings(cases: &[Case], setting: &Setting) -> Vec<String> {
    let mut warnings = Vec::new();
    if setting.is_quick {
        warnings.push("a smoke run: sizes are too small for any figure to mean something".into());
    }
    if setting.fio.is_none() {
        warnings.push("fio is missing, so its references are blank: apt-get install fio".into());
    }
    let cores = host::cores() as f64;
    if let Some(load) = setting.load_before.filter(|load| *load > cores) {
        warnings.push(format!(
            "the machine was busy before the run: load {load:.1} on {cores} cores"
        ));
    }
    for case in cases {
        for side in &case.sides {
            let spread = main_figure(side).and_then(|figure| side.spread(figure));
            if let Some(spread) = spread.filter(|spread| *spread > SPREAD_MAX) {
                warnings.push(format!(
                    "{}, {}, {}: the rounds lie {spread:.0} % apart, as on a busy machine",
                    case.row, case.name, side.name
                ));
            }
            let ops: u64 = side.samples.iter().map(|it| it.ops).sum();
            let preempted: u64 = side.samples.iter().map(|it| it.preempted).sum();
            if ops > 0 && preempted * 100 > ops && preempted > 100 {
                warnings.push(format!(
                    "{}, {}, {}: {preempted} involuntary context switches in {ops} operations",
                    case.row, case.name, side.name
                ));
            }
        }
    }
    warnings
}

/// The heading that says where and how it was measured.
fn heading(cases: &[Case], setting: &Setting) -> String {
    let loads = cases.iter().flat_map(|case| &case.sides);
    let loads = loads.flat_map(|side| side.samples.iter().filter_map(|it| it.load));
    let load_max = loads.fold(setting.load_before.unwrap_or(0.0), f64::max);
    format!(
        "{}; {}; load average {} before, {load_max:.1} at most",
        setting.machine,
        setting.fio.as_deref().unwrap_or("no fio"),
        setting
            .load_before
            .map_or("unknown".to_owned(), |load| format!("{load:.1}")),
    )
}

/// Everything as text.
pub fn text(cases: &[Case], setting: &Setting, is_markdown: bool) -> String {
    let mut parts = vec![
        heading(cases, setting),
        figures(cases, is_markdown).to_string(),
    ];
    if cases.iter().any(|case| !case.verdicts.is_empty()) {
        parts.push(targets(cases, is_markdown).to_string());
    }
    let bullet = if is_markdown { "- " } else { "warning: " };
    let warnings: Vec<String> = warnings(cases, setting)
        .iter()
        .map(|warning| format!("{bullet}{warning}"))
        .collect();
    if !warnings.is_empty() {
        parts.push(warnings.join("\n"));
    }
    parts.join("\n\n") + "\n"
}

/// Everything as JSON, every round of it.
pub fn json(cases: &[Case], setting: &Setting) -> Value {
    json!({
        "machine": setting.machine,
        "fio": setting.fio,
        "quick": setting.is_quick,
        "cores": host::cores(),
        "load_before": setting.load_before,
        "warnings": warnings(cases, setting),
        "cases": cases.iter().map(case_json).collect::<Vec<_>>(),
    })
}

fn case_json(case: &Case) -> Value {
    let targets: Vec<Value> = case
        .verdicts
        .iter()
        .map(|it| {
            json!({
                "target": it.text,
                "reached": it.value,
                "limit": it.limit,
                "met": it.is_met,
            })
        })
        .collect();
    json!({
        "row": case.row,
        "case": case.name,
        "sides": case.sides.iter().map(side_json).collect::<Vec<_>>(),
        "targets": targets,
    })
}

fn side_json(side: &Measured) -> Value {
    let mut medians = Map::new();
    let mut spreads = Map::new();
    for (name, figure, _) in COLUMNS {
        let name = match figure {
            Figure::BytesPerSecond => "bytes per s",
            _ => name,
        };
        medians.insert(name.to_owned(), json!(side.median(*figure)));
        spreads.insert(name.to_owned(), json!(side.spread(*figure)));
    }
    for (name, value) in extras(side) {
        medians.insert(name.to_owned(), json!(value));
    }
    let rounds: Vec<Value> = side
        .samples
        .iter()
        .map(|it| {
            json!({
                "ops": it.ops,
                "bytes": it.bytes,
                "seconds": it.span.as_secs_f64(),
                "cpu_seconds": it.cpu.as_secs_f64(),
                "device_read_bytes": it.device.map(|traffic| traffic.read),
                "device_written_bytes": it.device.map(|traffic| traffic.written),
                "involuntary_context_switches": it.preempted,
                "load": it.load,
            })
        })
        .collect();
    json!({
        "side": side.name,
        "error": side.error,
        "median": medians,
        "spread_percent": spreads,
        "rounds": rounds,
    })
}

//! `segments`: what the log is made of, for people who want to see it.

use super::args::Segments;
use super::outcome::{Code, Report};
use super::units::show_size;
use ringstore::{Segment, SegmentDump, Store};
use serde_json::{Map, Value, json};

pub(crate) async fn run(store: &Store, command: &Segments) -> anyhow::Result<Report> {
    match *command {
        Segments::Ls => list(store).await,
        Segments::Dump { number, shard } => dump(store, number, shard).await,
    }
}

async fn list(store: &Store) -> anyhow::Result<Report> {
    let segments = store.segments().await?;
    let mut lines = vec![format!(
        "{:>5} {:>9} {:>6}  {:<7}{:>7} {:>11}  {}",
        "shard", "segment", "epoch", "state", "pages", "live", "file"
    )];
    for segment in &segments {
        let number = segment.number.map_or("-".to_owned(), |it| it.to_string());
        lines.push(format!(
            "{:>5} {number:>9} {:>6}  {:<7}{:>7} {:>11}  {}",
            segment.shard,
            segment.epoch,
            segment.state.to_string(),
            segment.pages,
            show_size(segment.live_bytes),
            segment.file
        ));
    }
    let entries: Vec<Value> = segments
        .iter()
        .map(|it| Value::Object(fields(it)))
        .collect();
    Ok(Report::answer(
        lines.join("\n"),
        json!({ "segments": entries }),
    ))
}

fn fields(segment: &Segment) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("shard".to_owned(), segment.shard.into());
    fields.insert("segment".to_owned(), segment.number.into());
    fields.insert("epoch".to_owned(), segment.epoch.into());
    fields.insert("state".to_owned(), segment.state.to_string().into());
    fields.insert("pages".to_owned(), segment.pages.into());
    fields.insert("live_bytes".to_owned(), segment.live_bytes.into());
    fields.insert("file".to_owned(), segment.file.clone().into());
    fields
}

/// Shows every segment of a number: shards number theirs apart, so there may be one of each.
async fn dump(store: &Store, number: u64, only: Option<u64>) -> anyhow::Result<Report> {
    let held = store.segments().await?;
    let mut shards: Vec<u64> = held
        .iter()
        .filter(|segment| segment.number == Some(number))
        .map(|segment| segment.shard)
        .collect();
    if let Some(shard) = only {
        // One that does not hold it says so itself.
        shards = vec![shard];
    }
    if shards.is_empty() {
        // The first shard's answer is that there is none.
        shards.push(0);
    }
    let (mut texts, mut entries) = (Vec::new(), Vec::new());
    let mut code = Code::Ok;
    for shard in shards {
        let dump = store.dump_segment(shard, number).await?;
        if !dump.unreadable.is_empty() {
            code = Code::Corrupt;
        }
        texts.push(dump_text(&dump));
        entries.push(dump_json(&dump));
    }
    let report = Report::answer(texts.join("\n"), json!({ "segments": entries }));
    Ok(report.with_code(code))
}

fn dump_text(dump: &SegmentDump) -> String {
    let segment = &dump.segment;
    let mut lines = vec![format!(
        "shard={} segment={} epoch={} state={} pages={} live_bytes={} file={}",
        segment.shard,
        segment.number.unwrap_or(0),
        segment.epoch,
        segment.state,
        segment.pages,
        segment.live_bytes,
        segment.file
    )];
    let mut unreadable = dump.unreadable.iter().peekable();
    for batch in &dump.batches {
        while let Some((page, why)) = unreadable.next_if(|(page, _)| *page < batch.page) {
            lines.push(format!("page={page} unreadable: {why}"));
        }
        lines.push(format!(
            "page={} batch={} data_pages={} committed_through={}",
            batch.page, batch.lsn, batch.data_pages, batch.committed_through
        ));
        lines.extend(batch.records.iter().map(|record| format!("    {record}")));
    }
    lines.extend(unreadable.map(|(page, why)| format!("page={page} unreadable: {why}")));
    lines.join("\n")
}

fn dump_json(dump: &SegmentDump) -> Value {
    let mut fields = fields(&dump.segment);
    let batches = dump.batches.iter().map(|batch| {
        json!({
            "page": batch.page,
            "batch": batch.lsn,
            "data_pages": batch.data_pages,
            "committed_through": batch.committed_through,
            "records": batch.records,
        })
    });
    fields.insert("batches".to_owned(), batches.collect());
    let unreadable = dump.unreadable.iter();
    let unreadable = unreadable.map(|(page, why)| json!({ "page": page, "why": why }));
    fields.insert("unreadable".to_owned(), unreadable.collect());
    Value::Object(fields)
}

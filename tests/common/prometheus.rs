//! A strict reader of what Prometheus scrapes, text format 0.0.4: it refuses what it does not know.
//!
//! Beyond the grammar it holds the customs: a family is whole and in one place, counters end in
//! `_total`, histograms are cumulative and end in `+Inf`, and no sample comes twice.

use std::collections::{BTreeMap, BTreeSet};

/// One figure: its name, its labels in order, its value.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) samples: Vec<Sample>,
}

impl Family {
    /// The value of the sample that has exactly these labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.samples.iter().filter(|sample| {
            let same = |(name, value): &(&str, &str)| {
                sample.labels.get(*name).map(String::as_str) == Some(*value)
            };
            sample.name == name && sample.labels.len() == labels.len() && labels.iter().all(same)
        });
        found.next().map(|sample| sample.value)
    }
}

/// Reads families by their names. Panics at the first thing that is wrong.
pub(crate) fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'), "the last line is not ended");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut helped = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(!help.is_empty() && !families.contains_key(name), "{line}");
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert_eq!(name, helped, "a type comes behind its help: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            let family = Family {
                kind: kind.to_owned(),
                samples: Vec::new(),
            };
            assert!(families.insert(name.to_owned(), family).is_none(), "{line}");
            current = name.to_owned();
        } else {
            let sample = sample(line);
            let family = families.get_mut(&current).expect(line);
            let rest = sample.name.strip_prefix(&current).expect(line);
            let is_its_own = match family.kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&rest),
                _ => rest.is_empty(),
            };
            assert!(is_its_own, "{line}");
            family.samples.push(sample);
        }
    }
    families
        .iter()
        .for_each(|(name, family)| check(name, family));
    families
}

fn is_name(name: &str) -> bool {
    let mut signs = name.chars();
    let is_first = |sign: char| sign.is_ascii_alphabetic() || sign == '_';
    signs.next().is_some_and(is_first)
        && signs.all(|sign| sign.is_ascii_alphanumeric() || sign == '_')
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect(line);
    let name = line[..end].to_owned();
    assert!(is_name(&name), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, quoted) = rest.split_once("=\"").expect(line);
            assert!(is_name(label), "{line}");
            let (value, behind) = quoted.split_once('"').expect(line);
            assert!(
                !value.contains(['\\', '\n']),
                "nothing here needs escapes: {line}"
            );
            assert!(
                labels.insert(label.to_owned(), value.to_owned()).is_none(),
                "{line}"
            );
            rest = behind;
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect(line);
    }
    let value = rest.strip_prefix(' ').expect(line);
    let value: f64 = value.parse().expect(line);
    assert!(value.is_finite() && value >= 0.0, "{line}");
    Sample {
        name,
        labels,
        value,
    }
}

fn check(name: &str, family: &Family) {
    assert!(name.starts_with("ringstore_"), "{name}");
    assert!(!family.samples.is_empty(), "{name} has no sample");
    assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}");
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        let key = format!("{} {:?}", sample.name, sample.labels);
        assert!(seen.insert(key), "{sample:?} comes twice");
    }
    if family.kind != "histogram" {
        return;
    }
    let of = |suffix: &str| {
        let name = format!("{name}{suffix}");
        family
            .samples
            .iter()
            .filter(move |sample| sample.name == name)
    };
    assert!(name.ends_with("_seconds"), "{name}");
    for count in of("_count") {
        let (mut last, mut end) = (0.0, f64::NEG_INFINITY);
        for bucket in of("_bucket") {
            let mut labels = bucket.labels.clone();
            let bound = labels.remove("le").expect("a bucket has an end");
            if labels != count.labels {
                continue;
            }
            let bound: f64 = bound.parse().expect("a bucket's end is a number");
            assert!(bucket.value >= last && bound > end, "{bucket:?}");
            (last, end) = (bucket.value, bound);
        }
        assert!(end == f64::INFINITY && last == count.value, "{count:?}");
        let is_same = |sum: &&Sample| sum.labels == count.labels;
        assert!(of("_sum").any(|sum| is_same(&sum)), "{count:?} has no sum");
    }
}

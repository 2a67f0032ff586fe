//! How a figure comes about: sides that alternate, samples, medians, and what is to be reached.
//!
//! Invariants:
//! 1. Sides of a case alternate, A B A B, so that what slows the machine down slows both.
//! 2. A side that fails says why, once, and has no figures; the others go on.
//! 3. A target is judged by medians of this run only, and not at all where a side has none.

use crate::host;
use crate::machine::{self, Device, Traffic, Who};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Longest latency that is told apart, in nanoseconds: a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// The side that is ours, where there is one only.
pub const OURS: &str = "ringstore";

/// An empty histogram of nanoseconds, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are valid")
}

/// What one side did in one round.
pub struct Sample {
    pub ops: u64,
    pub bytes: u64,
    pub span: Duration,
    pub cpu: Duration,
    pub device: Option<Traffic>,
    /// Times that a thread was taken off its processor while it had work.
    pub preempted: u64,
    pub load: Option<f64>,
    /// Nanoseconds an operation; empty where operations were not timed one by one.
    pub latency: Histogram<u64>,
    /// Figures that only this row has.
    pub extra: Vec<(&'static str, f64)>,
}

impl Sample {
    pub fn with(mut self, name: &'static str, value: f64) -> Sample {
        self.extra.push((name, value));
        self
    }
}

/// Counts from its start what the process and the device do.
pub struct Meter<'a> {
    device: &'a Device,
    who: Who,
    began: Instant,
    usage: (Duration, u64),
    traffic: Option<Traffic>,
}

impl<'a> Meter<'a> {
    pub fn start(device: &'a Device, who: Who) -> Meter<'a> {
        Meter {
            device,
            who,
            traffic: device.traffic(),
            usage: machine::usage(who),
            began: Instant::now(),
        }
    }

    pub fn stop(self, ops: u64, bytes: u64, latency: Histogram<u64>) -> Sample {
        let span = self.began.elapsed();
        let (cpu, preempted) = machine::usage(self.who);
        let device = self.device.traffic().zip(self.traffic);
        Sample {
            ops,
            bytes,
            span,
            cpu: cpu.saturating_sub(self.usage.0),
            device: device.map(|(after, before)| Traffic {
                read: after.read - before.read,
                written: after.written - before.written,
            }),
            preempted: preempted - self.usage.1,
            load: host::load(),
            latency,
            extra: Vec::new(),
        }
    }
}

/// A number that a sample has.
#[derive(Clone, Copy)]
pub enum Figure {
    PerSecond,
    BytesPerSecond,
    /// Microseconds, at a quantile.
    LatencyUs(f64),
    MaxUs,
    /// Processor time, in microseconds.
    CpuUsPerOp,
    ReadPerOp,
    WrittenPerOp,
    /// Bytes that the device wrote for each that was asked for.
    WrittenPerByte,
    Preempted,
    Seconds,
    Extra(&'static str),
}

impl Figure {
    fn of(self, sample: &Sample) -> Option<f64> {
        let seconds = sample.span.as_secs_f64();
        let ops = (sample.ops > 0).then_some(sample.ops as f64);
        let us = |ns: u64| (!sample.latency.is_empty()).then_some(ns as f64 / 1e3);
        match self {
            Figure::PerSecond => ops.map(|ops| ops / seconds),
            Figure::BytesPerSecond => (sample.bytes > 0).then(|| sample.bytes as f64 / seconds),
            Figure::LatencyUs(quantile) => us(sample.latency.value_at_quantile(quantile)),
            Figure::MaxUs => us(sample.latency.max()),
            Figure::CpuUsPerOp => ops.map(|ops| sample.cpu.as_secs_f64() * 1e6 / ops),
            Figure::ReadPerOp => Some(sample.device?.read as f64 / ops?),
            Figure::WrittenPerOp => Some(sample.device?.written as f64 / ops?),
            Figure::WrittenPerByte => {
                (sample.bytes > 0).then_some(sample.device?.written as f64 / sample.bytes as f64)
            }
            Figure::Preempted => Some(sample.preempted as f64),
            Figure::Seconds => Some(seconds),
            Figure::Extra(wanted) => sample
                .extra
                .iter()
                .find_map(|(name, value)| (*name == wanted).then_some(*value)),
        }
    }
}

/// Somebody who does the work of a case.
pub struct Side<'a> {
    pub name: String,
    /// The run is a failure if it fails.
    pub is_required: bool,
    pub run: Box<dyn FnMut() -> anyhow::Result<Sample> + 'a>,
}

impl<'a> Side<'a> {
    pub fn new(
        name: impl Into<String>,
        run: impl FnMut() -> anyhow::Result<Sample> + 'a,
    ) -> Side<'a> {
        Side {
            name: name.into(),
            is_required: false,
            run: Box::new(run),
        }
    }

    /// Ourselves.
    pub fn ours(run: impl FnMut() -> anyhow::Result<Sample> + 'a) -> Side<'a> {
        Side {
            is_required: true,
            ..Side::new(OURS, run)
        }
    }
}

/// A side's samples, or why it has none.
pub struct Measured {
    pub name: String,
    pub is_required: bool,
    pub samples: Vec<Sample>,
    pub error: Option<String>,
}

impl Measured {
    fn values(&self, figure: Figure) -> Vec<f64> {
        let mut values: Vec<f64> = self.samples.iter().filter_map(|it| figure.of(it)).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The median of the rounds; of an even number the mean of the middle two.
    pub fn median(&self, figure: Figure) -> Option<f64> {
        let values = self.values(figure);
        let middle = values.len().checked_sub(1)?;
        Some((values[middle / 2] + values[middle.div_ceil(2)]) / 2.0)
    }

    /// How far the rounds lie apart, in percent of their median.
    pub fn spread(&self, figure: Figure) -> Option<f64> {
        let values = self.values(figure);
        let (low, high) = (values.first()?, values.last()?);
        let median = self.median(figure).filter(|it| *it != 0.0)?;
        (values.len() > 1).then(|| (high - low) / median * 100.0)
    }

    /// The latencies of all rounds.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        for sample in &self.samples {
            all.add(&sample.latency).expect("they have the same bounds");
        }
        all
    }
}

/// A target and what this run has to say to it.
pub struct Verdict {
    pub text: String,
    pub value: Option<f64>,
    pub limit: f64,
    pub is_met: Option<bool>,
}

/// One piece of work, done by several sides.
pub struct Case {
    pub row: &'static str,
    pub name: String,
    pub sides: Vec<Measured>,
    pub verdicts: Vec<Verdict>,
}

/// Lets the sides do their work in turns, so many rounds.
pub fn alternate(
    row: &'static str,
    name: impl Into<String>,
    rounds: usize,
    mut sides: Vec<Side>,
) -> Case {
    let name = name.into();
    let fresh = |side: &Side| Measured {
        name: side.name.clone(),
        is_required: side.is_required,
        samples: Vec::new(),
        error: None,
    };
    let mut measured: Vec<Measured> = sides.iter().map(fresh).collect();
    for round in 0..rounds {
        for (side, measured) in sides.iter_mut().zip(&mut measured) {
            if measured.error.is_some() {
                continue;
            }
            eprintln!("{row}, {name}: {} ({} of {rounds})", side.name, round + 1);
            match (side.run)() {
                Ok(sample) => measured.samples.push(sample),
                Err(error) => measured.error = Some(format!("{error:#}")),
            }
        }
    }
    Case {
        row,
        name,
        sides: measured,
        verdicts: Vec::new(),
    }
}

impl Case {
    /// A row that could not even begin.
    pub fn failed(row: &'static str, error: &anyhow::Error) -> Case {
        let side = Measured {
            name: OURS.to_owned(),
            is_required: true,
            samples: Vec::new(),
            error: Some(format!("{error:#}")),
        };
        Case {
            row,
            name: "preparation".to_owned(),
            sides: vec![side],
            verdicts: Vec::new(),
        }
    }

    pub fn side(&self, name: &str) -> Option<&Measured> {
        self.sides.iter().find(|side| side.name == name)
    }

    pub fn median(&self, side: &str, figure: Figure) -> Option<f64> {
        self.side(side)?.median(figure)
    }

    pub fn ratio(&self, side: &str, reference: &str, figure: Figure) -> Option<f64> {
        let reference = self.median(reference, figure).filter(|it| *it > 0.0)?;
        Some(self.median(side, figure)? / reference)
    }

    pub fn difference(&self, side: &str, reference: &str, figure: Figure) -> Option<f64> {
        Some(self.median(side, figure)? - self.median(reference, figure)?)
    }

    pub fn at_least(&mut self, text: impl Into<String>, value: Option<f64>, limit: f64) {
        self.judge(text.into(), value, limit, |value| value >= limit);
    }

    pub fn at_most(&mut self, text: impl Into<String>, value: Option<f64>, limit: f64) {
        self.judge(text.into(), value, limit, |value| value <= limit);
    }

    fn judge(&mut self, text: String, value: Option<f64>, limit: f64, holds: impl Fn(f64) -> bool) {
        let is_met = value.map(holds);
        self.verdicts.push(Verdict {
            text,
            value,
            limit,
            is_met,
        });
    }
}

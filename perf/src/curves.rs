//! Latency curves: for each case a picture, a line for each side, percentiles from left to right.
//!
//! Both axes are logarithmic. To the right it is the share of operations that took longer, from
//! one in one to one in as many as the sides have measured: where a line ends, nobody measured.

use crate::measure::{Case, Measured};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (900, 520);

/// Operations that a line's last point must have behind it.
const BEHIND_MIN: f64 = 3.0;

/// Draws every case that has latencies into a file of its own.
pub fn draw(cases: &[Case], dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    for case in cases {
        let lines: Vec<(&Measured, Vec<(f64, f64)>)> = case
            .sides
            .iter()
            .map(|side| (side, points(side)))
            .filter(|(_, points)| points.len() > 1)
            .collect();
        if !lines.is_empty() {
            let name = format!("{}-{}", case.row, case.name).replace([' ', '/', ','], "-");
            draw_case(case, &lines, &dir.join(name + ".svg"))?;
        }
    }
    Ok(())
}

/// (one in so many, microseconds), at ten places a decade.
fn points(side: &Measured) -> Vec<(f64, f64)> {
    let latency = side.latency();
    let last = latency.len() as f64 / BEHIND_MIN;
    (0..)
        .map(|step| 10_f64.powf(f64::from(step) / 10.0))
        .take_while(|one_in| *one_in <= last)
        .map(|one_in| {
            let ns = latency.value_at_quantile(1.0 - 1.0 / one_in);
            (one_in, ns.max(1) as f64 / 1e3)
        })
        .collect()
}

fn draw_case(
    case: &Case,
    lines: &[(&Measured, Vec<(f64, f64)>)],
    path: &Path,
) -> anyhow::Result<()> {
    let all = lines.iter().flat_map(|(_, points)| points);
    let right = all.clone().map(|(x, _)| *x).fold(10.0, f64::max);
    let low = all.clone().map(|(_, y)| *y).fold(f64::MAX, f64::min);
    let high = all.map(|(_, y)| *y).fold(low, f64::max);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{}, {}", case.row, case.name), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (1.0..right).log_scale(),
            (low * 0.8..high * 1.25).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("one operation in so many takes longer")
        .y_desc("microseconds")
        .draw()?;
    for (index, (side, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(side.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}

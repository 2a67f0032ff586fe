//! A bar on standard error while bytes move, when somebody is there to see it.

use super::args::Global;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A bar for `total` bytes, or a counter if nobody knows how many there are.
pub(crate) fn bytes(global: &Global, name: &str, total: Option<u64>) -> ProgressBar {
    let hidden =
        global.quiet || global.json || global.no_progress || !std::io::stderr().is_terminal();
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(total, target);
    let template = match total {
        Some(_) => "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{prefix} {bytes} {bytes_per_sec} {elapsed}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(name.to_owned());
    bar
}

/// A bar for so many segments.
pub(crate) fn segments(global: &Global, total: u64) -> ProgressBar {
    let bar = bytes(global, "upload", Some(total));
    let template = "{prefix} [{bar:30}] {pos}/{len} segments {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    bar.set_style(style.progress_chars("=> "));
    bar
}

/// A line that says what is going on.
pub(crate) fn spinner(global: &Global) -> ProgressBar {
    let bar = bytes(global, "", None);
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid"));
    bar
}

//! Medians, spreads, ratios, and the tables they are shown in.

use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use holdfast::os::Stopwatch;

/// The same thing measured several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// One more.
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// What a call took.
    pub(crate) fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let watch = Stopwatch::start();
        let answer = call();
        self.add(watch.elapsed().as_secs_f64());
        answer
    }

    /// The one in the middle.
    pub(crate) fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// The median as `show` tells it, and the least and the most.
    pub(crate) fn shown(&self, show: fn(f64) -> String) -> String {
        format!("{} ({} to {})", show(self.median()), show(self.0[0]), show(self.0[self.0.len() - 1]))
    }
}

/// What is measured beside what it is compared with, in turns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pair {
    pub(crate) ours: Series,
    pub(crate) bare: Series,
}

impl Pair {
    /// A row: the name, both, and how many times theirs ours is.
    pub(crate) fn row(&self, name: &str, show: fn(f64) -> String) -> Vec<String> {
        vec![name.to_owned(), self.ours.shown(show), self.bare.shown(show), ratio(&self.ours, &self.bare)]
    }
}

/// How many times the other median the one is.
pub(crate) fn ratio(one: &Series, other: &Series) -> String {
    format!("{:.2}", one.median() / other.median())
}

/// Seconds as milliseconds.
pub(crate) fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// Seconds as microseconds.
pub(crate) fn us(seconds: f64) -> String {
    format!("{:.0} us", seconds * 1e6)
}

/// A number a second.
pub(crate) fn per_second(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}/s") } else { format!("{value:.0}/s") }
}

/// Bytes a second.
pub(crate) fn mib_per_second(value: f64) -> String {
    format!("{:.0} MiB/s", value / f64::from(1 << 20))
}

/// Prints a table that can go into a document as it is.
pub(crate) fn print(title: &str, head: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(head);
    table.add_rows(rows);
    println!("{title}\n\n{table}\n");
}

/// How long a part that runs for a time runs.
pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// MiB.
pub(crate) fn mib(value: f64) -> String {
    format!("{value:.1} MiB")
}

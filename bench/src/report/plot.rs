//! Plots as SVG, without a library: lines over an amount of work, and groups of bars.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::views::{self, Shape, View};
use crate::results::Results;
use crate::stats::{Spread, digits};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 214.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 62.0;

/// Distinct for most eyes, also on a dark page.
const COLOURS: [&str; 12] = [
    "#0b6bcb", "#12a594", "#e5484d", "#f5a524", "#8e4ec6", "#7db8f0", "#7fd6c2", "#46a758",
    "#d6409f", "#8a6a4f", "#4b5157", "#b5b900",
];

/// One system's values, one per column.
struct Series<'a> {
    name: &'a str,
    colour: &'static str,
    values: Vec<Option<Spread>>,
}

/// Writes one file per view into `folder` and hands out how many.
pub(crate) fn write_all(results: &Results, folder: &Path) -> Result<usize, String> {
    let failed = |path: &Path, why: std::io::Error| format!("{}: {why}", path.display());
    fs::create_dir_all(folder).map_err(|why| failed(folder, why))?;
    let views = views::all(results);
    for view in &views {
        let path = folder.join(format!("{}.svg", view.id));
        fs::write(&path, svg(results, view)).map_err(|why| failed(&path, why))?;
    }
    Ok(views.len())
}

fn svg(results: &Results, view: &View) -> String {
    let systems: Vec<&str> = results.systems_run().collect();
    let mut series: Vec<Series<'_>> = Vec::new();
    for (number, name) in systems.into_iter().enumerate() {
        let values: Vec<_> = (view.columns.iter())
            .map(|column| results.spread(&column.workload, name, column.metric))
            .collect();
        if values.iter().any(Option::is_some) {
            series.push(Series { name, colour: COLOURS[number % COLOURS.len()], values });
        }
    }
    let values = || series.iter().flat_map(|one| one.values.iter().flatten());
    let top = values().map(|value| value.max).fold(0.0, f64::max);
    let least = values().map(|value| value.median).fold(f64::INFINITY, f64::min);
    // Bars of very different sizes would hide the small ones, and they are what we are proud of.
    let scale = match view.shape {
        Shape::Bars if least > 0.0 && top / least > 30.0 => Scale::logarithmic(least, top),
        _ => Scale::linear(top),
    };
    let mut canvas = Canvas::new(view);
    canvas.axis(&scale);
    match view.shape {
        Shape::Lines(what) => canvas.lines(view, &series, &scale, what),
        Shape::Bars => canvas.bars(view, &series, &scale),
    }
    canvas.legend(&series);
    canvas.finish()
}

/// From values to heights.
struct Scale {
    ticks: Vec<f64>,
    bottom: f64,
    top: f64,
    is_logarithmic: bool,
}

impl Scale {
    fn linear(top: f64) -> Self {
        let step = step(top / 5.0);
        let count = (top / step).ceil().max(1.0);
        let ticks = (0..=count as usize).map(|number| number as f64 * step).collect();
        Self { ticks, bottom: 0.0, top: count * step, is_logarithmic: false }
    }

    fn logarithmic(least: f64, top: f64) -> Self {
        let (first, last) = (least.log10().floor(), top.log10().ceil());
        let ticks = (first as i32..=last as i32).map(|power| 10_f64.powi(power)).collect();
        Self { ticks, bottom: first, top: last.max(first + 1.0), is_logarithmic: true }
    }

    fn y(&self, value: f64) -> f64 {
        let value = match self.is_logarithmic {
            true => value.max(f64::MIN_POSITIVE).log10().max(self.bottom),
            false => value,
        };
        let share = (value - self.bottom) / (self.top - self.bottom);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= least * 0.999_999).unwrap_or(least)
}

struct Canvas {
    text: String,
}

// Writing to a string cannot fail, so results of `write!` are dropped throughout.
impl Canvas {
    fn new(view: &View) -> Self {
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"28\" font-size=\"18\" font-weight=\"600\">{}</text>",
            escape(&view.title)
        );
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"46\" fill=\"#687076\">{}</text>",
            escape(view.unit)
        );
        Self { text }
    }

    fn axis(&mut self, scale: &Scale) {
        for tick in &scale.ticks {
            let y = scale.y(*tick);
            let _ = writeln!(
                self.text,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#e4e6e8\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#687076\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                tick_label(*tick),
            );
        }
    }

    fn lines(&mut self, view: &View, series: &[Series<'_>], scale: &Scale, what: &str) {
        let places = view.columns.len();
        let step = (WIDTH - LEFT - RIGHT) / places as f64;
        let x = |place: usize| LEFT + step * (place as f64 + 0.5);
        for (place, column) in view.columns.iter().enumerate() {
            self.label(x(place), 0, &column.heading);
        }
        self.label(f64::midpoint(LEFT, WIDTH - RIGHT), 1, what);
        for one in series {
            let points: Vec<(f64, Spread)> = (one.values.iter().enumerate())
                .filter_map(|(place, value)| Some((x(place), (*value)?)))
                .collect();
            let path: Vec<String> = (points.iter())
                .map(|(x, value)| format!("{x:.1},{:.1}", scale.y(value.median)))
                .collect();
            let colour = one.colour;
            let _ = writeln!(
                self.text,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
                path.join(" ")
            );
            for (x, value) in points {
                self.whisker(x, value, scale, colour);
                let _ = writeln!(
                    self.text,
                    "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\">\
                     <title>{}: {}</title></circle>",
                    scale.y(value.median),
                    escape(one.name),
                    digits(value.median)
                );
            }
        }
    }

    fn bars(&mut self, view: &View, series: &[Series<'_>], scale: &Scale) {
        let group = (WIDTH - LEFT - RIGHT) / view.columns.len() as f64;
        let bar = group * 0.84 / series.len().max(1) as f64;
        let floor = HEIGHT - BOTTOM;
        for (place, column) in view.columns.iter().enumerate() {
            let left = LEFT + group * (place as f64 + 0.08);
            // Many groups stand close together, so a heading takes two rows.
            for (row, words) in column.heading.splitn(2, " of ").enumerate() {
                self.label(LEFT + group * (place as f64 + 0.5), row, words);
            }
            for (number, one) in series.iter().enumerate() {
                let Some(value) = one.values[place] else { continue };
                let x = left + bar * number as f64;
                let y = scale.y(value.median);
                let _ = writeln!(
                    self.text,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                     fill=\"{}\"><title>{}: {}</title></rect>",
                    bar * 0.9,
                    (floor - y).max(0.5),
                    one.colour,
                    escape(one.name),
                    digits(value.median)
                );
                self.whisker(x + bar * 0.45, value, scale, "#111827");
            }
        }
    }

    fn whisker(&mut self, x: f64, value: Spread, scale: &Scale, colour: &str) {
        let _ = writeln!(
            self.text,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
             stroke-opacity=\"0.45\"/>",
            scale.y(value.min),
            scale.y(value.max)
        );
    }

    fn label(&mut self, x: f64, row: usize, text: &str) {
        let y = HEIGHT - BOTTOM + 20.0 + row as f64 * 20.0;
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"#687076\">{}</text>",
            escape(text)
        );
    }

    fn legend(&mut self, series: &[Series<'_>]) {
        for (number, one) in series.iter().enumerate() {
            let x = WIDTH - RIGHT + 20.0;
            let y = TOP + 8.0 + number as f64 * 21.0;
            let _ = writeln!(
                self.text,
                "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                one.colour,
                x + 18.0,
                y + 11.0,
                escape(one.name)
            );
        }
    }

    fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// Round numbers need no places behind the point.
fn tick_label(value: f64) -> String {
    match value.fract() == 0.0 && value < 10_000.0 {
        true => format!("{value:.0}"),
        false => digits(value),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;

    /// Ticks are round numbers, and the largest value lies below the last of them.
    #[test]
    fn ticks_are_round() {
        assert_eq!([0.9, 1.0, 1.7, 3.1, 48.0, 0.0].map(step), [1.0, 1.0, 2.0, 5.0, 50.0, 1.0]);
        let scale = Scale::linear(17.3);
        assert_eq!(scale.ticks, [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert!(scale.y(0.0) > scale.y(17.3) && scale.y(17.3) > TOP);
        let scale = Scale::logarithmic(3.0, 450.0);
        assert_eq!(scale.ticks, [1.0, 10.0, 100.0, 1000.0]);
    }

    /// A plot shows every system that has values, and each view becomes a file.
    #[test]
    fn plots_of_results() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(write_all(&sample(), folder.path()), Ok(2));
        let path = folder.path().join("bulk-down-gbit-s.svg");
        let text = fs::read_to_string(path).expect("written");
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        assert_eq!(text.matches("<polyline").count(), 2);
        assert_eq!(text.matches("<circle").count(), 4);
        assert!(text.contains(">rathole</text>") && !text.contains("bore"));
    }
}

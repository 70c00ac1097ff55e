//! Line plots as inline SVG; colours come from the page's style, so they follow light and dark.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;
/// Points drawn of a line; more are merged, the highest of neighbours kept.
const MAX_POINTS: usize = 430;
/// Points that show their value under the pointer.
const MAX_HINTS: usize = 130;

/// A plot of lines over one axis.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    /// What is on the axes.
    pub(crate) note: &'a str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
    /// Writes a value for a tick or a hint.
    pub(crate) show: fn(f64) -> String,
    /// Writes a place on the x axis for a hint.
    pub(crate) show_x: fn(f64) -> String,
}

/// One line.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// Class of the style: its colour.
    pub(crate) class: &'static str,
    pub(crate) kind: Kind,
    /// In order of x.
    pub(crate) points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Solid,
    Dashed,
    Area,
}

/// Where values stand, and what is written beside it.
pub(crate) struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to `to`, with round numbers.
    pub(crate) fn linear(to: f64, show: fn(f64) -> String) -> Self {
        let to = if to > 0.0 { to } else { 1.0 };
        let rough = to / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|step| step * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let count = (to / step - 1e-9).ceil().max(1.0);
        let ticks = (0..=count as u32).map(|n| f64::from(n) * step).map(|at| (at, show(at)));
        Self { from: 0.0, to: count * step, is_log: false, ticks: ticks.collect() }
    }

    /// Whole seconds.
    pub(crate) fn seconds(to: f64) -> Self {
        let whole = Self::linear(to.max(5.0), |at| format!("{at:.0} s"));
        Self {
            to: to.max(1.0),
            ticks: whole.ticks.into_iter().filter(|t| t.0 <= to).collect(),
            ..whole
        }
    }

    /// Powers of ten (and 2 and 5 of them) from below `from` to above `to`, both above 0.
    pub(crate) fn log(from: f64, to: f64, show: fn(f64) -> String) -> Self {
        let wide = (to / from).log10() > 3.0;
        let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let first = from.log10().floor() as i32;
        let marks: Vec<f64> = (first..=to.log10().ceil() as i32 + 1)
            .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
            .collect();
        let low = marks.iter().rev().find(|mark| **mark <= from).copied().unwrap_or(from);
        let high = marks.iter().find(|mark| **mark >= to && **mark > low).copied().unwrap_or(to);
        let ticks = marks.into_iter().filter(|mark| (low..=high).contains(mark));
        Self {
            from: low,
            to: high,
            is_log: true,
            ticks: ticks.map(|mark| (mark, show(mark))).collect(),
        }
    }

    /// The shares of a percentile curve: each step is a tenth of what is left.
    pub(crate) fn shares(finest: f64) -> Self {
        let names = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")]
            .into_iter()
            .chain([(0.9999, "99.99 %"), (0.99999, "99.999 %")]);
        let to = nines(finest).max(1.0);
        let ticks = names.map(|(share, name)| (nines(share), name.to_owned()));
        Self { from: 0.0, to, is_log: false, ticks: ticks.filter(|tick| tick.0 <= to).collect() }
    }

    /// Place between 0 and 1.
    fn place(&self, value: f64) -> f64 {
        let place = if self.is_log {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        place.clamp(0.0, 1.0)
    }
}

/// Where a share stands on the axis of shares: 0.9 at 1, 0.99 at 2.
pub(crate) fn nines(share: f64) -> f64 {
    -(1.0 - share.min(0.999_999)).log10()
}

/// The share that stands there.
pub(crate) fn share_at(nines: f64) -> f64 {
    1.0 - 10f64.powf(-nines)
}

impl Plot<'_> {
    /// A `figure` with a legend and the picture.
    pub(crate) fn write(&self, out: &mut String) {
        let Self { title, note, .. } = self;
        // Writing to a string cannot fail.
        let _ = write!(out, "<figure><figcaption><h2>{title}</h2><span>{note}</span></figcaption>");
        out.push_str("<ul class=\"legend\">");
        for line in &self.lines {
            let dashed = if line.kind == Kind::Dashed { " dashed" } else { "" };
            let _ = write!(out, "<li class=\"{}{dashed}\">{}</li>", line.class, line.name);
        }
        let _ = write!(
            out,
            "</ul><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
        );
        self.grid(out);
        for line in &self.lines {
            self.line(out, line);
        }
        for line in &self.lines {
            self.hints(out, line);
        }
        out.push_str("</svg></figure>\n");
    }

    fn grid(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (at, name) in &self.y.ticks {
            let y = self.y_of(*at);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        for (at, name) in &self.x.ticks {
            let x = self.x_of(*at);
            let _ = write!(
                out,
                "<path class=\"grid faint\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                bottom + 19.0
            );
        }
    }

    fn line(&self, out: &mut String, line: &Line) {
        let points = thinned(&line.points);
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let mut path = String::with_capacity(points.len() * 12);
        for (at, (x, y)) in points.iter().enumerate() {
            let letter = if at == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", self.x_of(*x), self.y_of(*y));
        }
        let class = line.class;
        if line.kind == Kind::Area {
            let (bottom, from, to) = (HEIGHT - BOTTOM, self.x_of(first.0), self.x_of(last.0));
            let _ = write!(
                out,
                "<path class=\"area {class}\" d=\"{path}L{to:.1} {bottom}L{from:.1} {bottom}Z\"/>"
            );
        }
        let dashed = if line.kind == Kind::Dashed { " dashed" } else { "" };
        let _ = write!(out, "<path class=\"line {class}{dashed}\" d=\"{path}\"/>");
    }

    /// Dots that appear, with their value, under the pointer.
    fn hints(&self, out: &mut String, line: &Line) {
        if line.points.len() > MAX_HINTS {
            return;
        }
        for (x, y) in &line.points {
            let _ = write!(
                out,
                "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{}, {}: {}</title>\
                 </circle>",
                line.class,
                self.x_of(*x),
                self.y_of(*y),
                line.name,
                (self.show_x)(*x),
                (self.show)(*y)
            );
        }
    }

    fn x_of(&self, x: f64) -> f64 {
        LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
    }

    fn y_of(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM)
    }
}

/// At most so many points: of neighbours the highest, because a peak must not be lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(MAX_POINTS).max(1);
    points
        .chunks(step)
        .filter_map(|near| near.iter().max_by(|a, b| a.1.total_cmp(&b.1)).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, name)| &**name).collect()
    }

    #[test]
    fn axes_have_round_numbers() {
        let plain = |at: f64| format!("{at}");
        assert_eq!(ticks(&Axis::linear(210.0, plain)), ["0", "50", "100", "150", "200", "250"]);
        assert_eq!(ticks(&Axis::linear(0.0, |at| format!("{at:.1}"))).len(), 6);
        assert_eq!(
            ticks(&Axis::log(3.0, 400.0, plain)),
            ["2", "5", "10", "20", "50", "100", "200", "500"]
        );
        assert_eq!(ticks(&Axis::log(100.0, 100.0, plain)), ["100", "200"]);
        assert_eq!(ticks(&Axis::shares(0.9995)), ["0 %", "50 %", "90 %", "99 %", "99.9 %"]);
        assert_eq!(ticks(&Axis::seconds(12.0)), ["0 s", "5 s", "10 s"]);
    }

    #[test]
    fn a_peak_survives_thinning() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        points[7777].1 = 99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS && thin.contains(&(7777.0, 99.0)));
    }
}

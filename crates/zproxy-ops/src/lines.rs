//! A log line as text, in a form that costs a data core little: every flow ends with one.
//!
//! The form is that of `tracing_subscriber`: time, level, message, then the fields as `name=value`. A
//! line is put together in one buffer that is used again; the time of a second is formatted once.

use std::cell::RefCell;
use std::fmt::{self, Debug, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines without colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines;

thread_local! {
    static DESK: RefCell<Desk> = RefCell::new(Desk::default());
}

/// What a thread keeps between lines.
#[derive(Default)]
struct Desk {
    line: String,
    /// `2026-01-02T03:04:05` of this second after the epoch.
    second: u64,
    time: String,
}

impl Desk {
    /// Begins a line with the time, in UTC.
    fn begin(&mut self, now: Duration) -> fmt::Result {
        if self.time.is_empty() || self.second != now.as_secs() {
            self.second = now.as_secs();
            let (year, month, day) = date(self.second / 86_400);
            let (hour, minute) = (self.second / 3_600 % 24, self.second / 60 % 60);
            let second = self.second % 60;
            self.time.clear();
            write!(self.time, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        }
        self.line.clear();
        self.line.push_str(&self.time);
        write!(self.line, ".{:06}Z ", now.subsec_micros())
    }
}

/// Year, month and day of a day after 1970-01-01. (Counted in years that begin with March, so that a
/// leap day is the last of its year, and in eras of 400 of them, which are all of one length.)
fn date(day: u64) -> (u64, u64, u64) {
    // From 0000-03-01 to 1970-01-01, and the length of an era.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months have 153 days, from March on.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * era + year + next, month, day)
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        DESK.with_borrow_mut(|desk| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            desk.begin(now)?;
            desk.line.push_str(word(*event.metadata().level()));
            let mut fields = Fields { line: &mut desk.line, result: Ok(()) };
            event.record(&mut fields);
            fields.result?;
            if desk.line.bytes().any(may_control) {
                desk.line = tamed(&desk.line);
            }
            desk.line.push('\n');
            writer.write_str(&desk.line)
        })
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => " WARN",
        Level::INFO => " INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// Whether a byte of UTF-8 may belong to a control character: C0, DEL, or the first half of C1. Going
/// by bytes, a line is looked over in a few instructions.
fn may_control(byte: u8) -> bool {
    matches!(byte, 0..=0x1f | 0x7f | 0xc2)
}

/// Whatever peers have put into it, a line stays one line and commands no terminal.
fn tamed(line: &str) -> String {
    line.chars().fold(String::with_capacity(2 * line.len()), |mut tame, character| {
        if character.is_control() {
            tame.extend(character.escape_default());
        } else {
            tame.push(character);
        }
        tame
    })
}

struct Fields<'a> {
    line: &'a mut String,
    result: fmt::Result,
}

impl Fields<'_> {
    fn name(&mut self, field: &Field) {
        self.line.push(' ');
        let name = field.name();
        if name != "message" {
            self.line.push_str(name.strip_prefix("r#").unwrap_or(name));
            self.line.push('=');
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.name(field);
        self.result = self.result.and_then(|()| write!(self.line, "{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{error, info, warn};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Sheet(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sheet {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sheet {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn write_all() {
        info!(flow = %"0-17", client = "a name", "in" = 7u64, ms = 1.5, gone = false, "flow ended");
        info!(public = Option::<u16>::None, r#type = ?Some(1), "what {} it is", 2);
        warn!(only = "a field");
        error!("an error");
    }

    /// Line by line the same as the usual form, up to the time.
    #[test]
    fn the_usual_form() {
        let (ours, usual) = (Sheet::default(), Sheet::default());
        let base = || tracing_subscriber::fmt().with_target(false).with_ansi(false);
        let lines = base().event_format(Lines).with_writer(ours.clone()).finish();
        tracing::subscriber::with_default(lines, write_all);
        let lines = base().with_writer(usual.clone()).finish();
        tracing::subscriber::with_default(lines, write_all);
        let text = |sheet: Sheet| String::from_utf8(sheet.0.lock().unwrap().clone()).unwrap();
        let (ours, usual) = (text(ours), text(usual));
        assert_eq!(ours.lines().count(), 4);
        for (ours, usual) in ours.lines().zip(usual.lines()) {
            let time = "2026-01-02T03:04:05.678901Z".len();
            assert_eq!(ours[time..], usual[time..]);
            let shape =
                |line: &str| line[..time].replace(|digit: char| digit.is_ascii_digit(), "0");
            assert_eq!(shape(ours), "0000-00-00T00:00:00.000000Z");
            assert_eq!(shape(usual), shape(ours));
        }
    }

    /// Every moment has its time, as date(1) has it.
    #[test]
    fn times() {
        let mut desk = Desk::default();
        for (micros, time) in [
            (0, "1970-01-01T00:00:00.000000Z "),
            (5_000_001, "1970-01-01T00:00:05.000001Z "),
            (5_999_999, "1970-01-01T00:00:05.999999Z "),
            (951_782_399_000_000, "2000-02-28T23:59:59.000000Z "),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z "),
            (951_868_800_000_000, "2000-03-01T00:00:00.000000Z "),
            (1_798_761_599_500_000, "2026-12-31T23:59:59.500000Z "),
            (1_798_761_600_000_000, "2027-01-01T00:00:00.000000Z "),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z "),
        ] {
            desk.begin(Duration::from_micros(micros)).unwrap();
            assert_eq!(desk.line, time);
        }
    }

    /// A peer's control characters neither end a line nor reach a terminal.
    #[test]
    fn control_characters_are_written_out() {
        let sheet = Sheet::default();
        let lines = tracing_subscriber::fmt().with_ansi(false).event_format(Lines);
        let lines = lines.with_writer(sheet.clone()).finish();
        let name = "a\x1b[31m\r\n\u{9b}b";
        tracing::subscriber::with_default(lines, || info!(client = %name, "here"));
        let text = String::from_utf8(sheet.0.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with(" here client=a\\u{1b}[31m\\r\\n\\u{9b}b\n"), "{text:?}");
    }
}

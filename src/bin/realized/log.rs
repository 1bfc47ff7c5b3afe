//! The log: lines on standard error, as many as the configuration asks for.

use std::fmt;

use realize::{config::LogLevel, model::Line};
use tracing::{Event, Level, Subscriber, field::Visit};
use tracing_subscriber::{
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::{LookupSpan, Registry},
    reload,
};

/// Sets how much is logged.
pub struct Amount(reload::Handle<Targets, Registry>);

impl Amount {
    /// That from now on.
    pub fn set(&self, level: LogLevel) {
        // The log lives as long as the program.
        self.0.reload(filter(level)).ok();
    }
}

/// Begins to log. Nothing was logged before.
pub fn begin() -> Amount {
    let (filter, handle) = reload::Layer::new(filter(LogLevel::default()));
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines)
        // Nobody to tell is no reason to stop, nor to say so.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(filter).with(lines);
    // Fails where one is set already.
    tracing::subscriber::set_global_default(log).ok();
    Amount(handle)
}

/// What this program says itself, up to `level`.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
    };
    Targets::new()
        .with_target("realized", level)
        // A disk that fails.
        .with_target("realize::store", level)
}

/// One line for each event, with nothing around it but the program's name: time and level are the journal's.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut message = Message::default();
        event.record(&mut message);
        // What peers send has no place in a line unescaped.
        writeln!(writer, "realized: {}", Line(&message.0))
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

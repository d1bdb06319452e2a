//! The trace context of the container runtime (W3C Trace Context), which libcni passes to plugins in the environment:
//! `TRACEPARENT` and `TRACESTATE`.

use std::fmt;

/// The environment variable with the trace, and the span that ran the plugin.
pub const TRACEPARENT: &str = "TRACEPARENT";

/// The environment variable with what vendors add to it.
pub const TRACESTATE: &str = "TRACESTATE";

/// The longest `TRACESTATE` that is passed on; the specification asks for no more.
const LONGEST_STATE: usize = 512;

/// A span of somebody's trace: `VERSION-TRACE-SPAN-FLAGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span; never 0.
    pub span_id: u64,
    /// Whether the trace is recorded, and not only passed on.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads the variable's value; `None` if it is not valid. Of versions newer than 00 it reads the fields that this one has, as
    /// the specification says.
    ///
    /// # Examples
    ///
    /// ```
    /// use ebbtide_plugin::trace_context::TraceParent;
    ///
    /// let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let parent = TraceParent::parse(text).ok_or("it is valid")?;
    /// assert!(parent.is_sampled);
    /// assert_eq!(parent.to_string(), text);
    /// # Ok::<(), &str>(())
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let version = hex(fields.next()?, 2)?;
        let trace_id = hex(fields.next()?, 32)?;
        let span_id = hex(fields.next()?, 16)?;
        let flags = hex(fields.next()?, 2)?;
        let has_more = fields.next().is_some();
        let is_known = version < 0xff && (version > 0 || !has_more);
        (is_known && trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            // 16 digits.
            span_id: span_id as u64,
            is_sampled: flags & 1 != 0,
        })
    }
}

/// Formats it as version 00.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            is_sampled,
        } = self;
        let flags = u8::from(*is_sampled);
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }
}

/// Reads a field of so many lower-case digits.
fn hex(field: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_one = field.len() == digits && field.bytes().all(is_digit);
    is_one.then(|| u128::from_str_radix(field, 16).ok())?
}

/// Whether the value of `TRACESTATE` may be passed on: `key=value`, separated by commas, of printable characters. Who
/// reads it decides the rest.
#[must_use]
pub fn is_trace_state(text: &str) -> bool {
    let is_member = |member: &str| {
        let member = member.trim_matches([' ', '\t']);
        member.is_empty() || member.find('=').is_some_and(|at| at > 0)
    };
    let is_printable = |byte| matches!(byte, b' '..=b'~' | b'\t');
    !text.trim().is_empty()
        && text.len() <= LONGEST_STATE
        && text.bytes().all(is_printable)
        && text.split(',').all(is_member)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn what_the_specification_calls_valid_is_read_and_nothing_else() {
        for (text, is_sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            // Flags that nobody knows yet say nothing about the one that is known.
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-fe"), Some(false)),
            // Newer versions may add fields at the end.
            (format!("01-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-ever"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01.what"), None),
            (format!("00-{TRACE}-{SPAN}-01-what"), None),
            (format!("00-{TRACE}-{SPAN}-01-"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("0-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{}-01", SPAN.to_uppercase()), None),
            (format!("00-{TRACE}-{SPAN}-0A"), None),
            (format!("00-{TRACE}-{SPAN}-1"), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-+{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-{TRACE}0-{SPAN}-01"), None),
            (format!(" 00-{TRACE}-{SPAN}-01"), None),
            (format!("00-{TRACE}-{SPAN}-01\n"), None),
            (format!("00_{TRACE}_{SPAN}_01"), None),
            ("00-\u{661}-\u{661}-01".to_owned(), None),
            ("---".to_owned(), None),
            (String::new(), None),
        ] {
            let parent = TraceParent::parse(&text);
            assert_eq!(parent.map(|parent| parent.is_sampled), is_sampled, "{text}");
            if let Some(parent) = parent {
                assert_eq!(format!("{:032x}", parent.trace_id), TRACE);
                assert_eq!(format!("{:016x}", parent.span_id), SPAN);
            }
        }
    }

    #[test]
    fn leading_zeros_of_an_id_are_kept() {
        let text = format!("00-{:032x}-{:016x}-00", 1, 2);
        let parent = TraceParent::parse(&text).unwrap();
        assert_eq!((parent.trace_id, parent.span_id), (1, 2));
        assert_eq!(parent.to_string(), text);
    }

    #[test]
    fn a_state_that_would_harm_an_environment_is_not_passed_on() {
        for (text, is_valid) in [
            ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", true),
            ("a=1 , b=2", true),
            ("a=1,,b=2", true),
            ("a=", true),
            ("", false),
            (" ", false),
            ("a", false),
            ("=1", false),
            ("a=1\nb=2", false),
            ("a=\u{7f}", false),
            ("a=\u{e4}", false),
        ] {
            assert_eq!(is_trace_state(text), is_valid, "{text:?}");
        }
        let longest = format!("a={}", "x".repeat(LONGEST_STATE - 2));
        assert!(is_trace_state(&longest));
        assert!(!is_trace_state(&format!("{longest}x")));
    }
}

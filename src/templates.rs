//! What every engine of templates here has in common: strict filters, and text that is bounded.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, Template, Value, filters};

/// What a template may bring forth, in bytes.
pub(crate) const RENDERED_BYTES_MAX: usize = 16 << 20;

/// An engine whose templates may take so many steps. What they write is no HTML, whatever their
/// names end with.
pub(crate) fn engine(steps_max: u64) -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_auto_escape_callback(|_| AutoEscape::None);
    engine.set_fuel(Some(steps_max));
    // These two take what is undefined for nothing however strict the engine is.
    engine.add_filter("urlencode", |value: Value| filters::urlencode(defined(&value)?));
    engine.add_filter("tojson", |value: Value, indent: Option<Value>, args: Kwargs| {
        filters::tojson(defined(&value)?, indent, args)
    });
    engine
}

/// Lets nothing undefined pass. The engine names what is in the error of such a look into it.
pub(crate) fn defined(value: &Value) -> Result<&Value, Error> {
    if value.is_undefined() {
        value.get_attr("")?;
    }
    Ok(value)
}

/// Renders a template, to [`RENDERED_BYTES_MAX`].
pub(crate) fn render(template: Template<'_, '_>, scope: Value) -> Result<Vec<u8>, Error> {
    let mut text = Bounded(Vec::new());
    template.render_captured_to(scope, &mut text)?;
    Ok(text.0)
}

/// Takes what is written until it is too much.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.0.len() + piece.len() > RENDERED_BYTES_MAX {
            return Err(io::Error::other(format!("more than {RENDERED_BYTES_MAX} bytes")));
        }
        self.0.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

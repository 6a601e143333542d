//! Figures as PNG, with the font that the program carries, so that they look the same where no font is installed.

use std::sync::Arc;

use anyhow::Context as _;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb::Database};

/// Text as it is in figures and pages; licence in fonts/OFL.txt.
pub(super) const REGULAR: &[u8] = include_bytes!("fonts/Inter-Regular.otf");
/// The same for headings.
pub(super) const SEMI_BOLD: &[u8] = include_bytes!("fonts/Inter-SemiBold.otf");
/// Pixels for each unit of a figure.
const SCALE: f32 = 2.0;

/// Draws SVG files; the same bytes for the same file.
#[derive(Debug)]
pub(super) struct Painter {
    options: usvg::Options<'static>,
}

impl Painter {
    /// With the program's own font and no other.
    #[must_use]
    pub(super) fn new() -> Self {
        let mut fonts = Database::new();
        fonts.load_font_data(REGULAR.to_vec());
        fonts.load_font_data(SEMI_BOLD.to_vec());
        let options = usvg::Options {
            font_family: "Inter".into(),
            fontdb: Arc::new(fonts),
            ..usvg::Options::default()
        };
        Self { options }
    }

    /// The PNG of an SVG file.
    ///
    /// # Errors
    /// If the file is no SVG, or has no size.
    pub(super) fn png(&self, svg: &str) -> anyhow::Result<Vec<u8>> {
        let tree = usvg::Tree::from_str(svg, &self.options).context("a figure is no SVG")?;
        let size = tree.size().to_int_size().scale_by(SCALE).context("a figure has no size")?;
        let mut pixels = Pixmap::new(size.width(), size.height()).context("a figure has no size")?;
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
        pixels.encode_png().context("cannot encode a figure")
    }
}

impl Default for Painter {
    fn default() -> Self {
        Self::new()
    }
}

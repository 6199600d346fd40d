"""A real bundle, served like the fake one: ``python -m served_bundle BUNDLE [CONFIG.yaml]`` prints the address."""

from __future__ import annotations

from served_fake import main

from rookery.serve.bundle_timeline import open_bundle

if __name__ == "__main__":
    main(open_bundle)

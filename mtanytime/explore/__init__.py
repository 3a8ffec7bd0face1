"""Pictures: tables in; figures (`draw`), widgets and pages out."""

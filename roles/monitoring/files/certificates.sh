#!/bin/sh
# certificates OUT PATTERN...: when the certificate in each file ends, for the textfile collector of the node exporter. What
# cannot be read as a certificate ends at 0, so that somebody hears of it.
set -eu
out=$1
shift
{
    echo "# HELP raymetal_certificate_end_timestamp_seconds When the certificate ends."
    echo "# TYPE raymetal_certificate_end_timestamp_seconds gauge"
    for pattern; do
        for file in $pattern; do
            [ -e "$file" ] || continue  # a pattern that nothing matches
            end=$(openssl x509 -noout -enddate -in "$file" | sed 's/^notAfter=//') || end=
            echo "raymetal_certificate_end_timestamp_seconds{path=\"$file\"} $([ -z "$end" ] && echo 0 || date -d "$end" +%s)"
        done
    done
} > "$out.new"
mv "$out.new" "$out"

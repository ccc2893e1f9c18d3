{{/* The alerts of files/alerts.yaml, with an `expr` each. */}}
{{- define "holdfast.alerts" -}}
{{- $warning := include "holdfast.certificateWarning" . | int }}
{{- $for := div $warning 4 | max 60 | min 3600 }}
{{- $text := .Files.Get "files/alerts.yaml" | replace "CONTROLLER" (include "holdfast.controller" .) | replace "CERTIFICATE_WARNING" (toString $warning) | replace "CERTIFICATE_FOR" (printf "%ds" $for) }}
{{- $alerts := dict }}
{{- range $name, $alert := fromYaml $text }}
{{- with $alert.events }}
{{- $_ := set $alert "expr" (printf "sum by (%s) ((increase(%s[%s]) > 0) or (%s unless %s == last_over_time(%s[1d] offset %s)))" (join ", " .by) .counter .within .counter .counter .counter .within) }}
{{- end }}
{{- $_ := set $alerts $name $alert }}
{{- end }}
{{- toYaml $alerts }}
{{- end }}

{{/*
How many seconds before its end a certificate should have been renewed: when a quarter of the time for that is over, a week
before its end at the latest. Nobody but their maker knows how long those of `files` live.
*/}}
{{- define "holdfast.certificateWarning" -}}
{{- $week := 604800 }}
{{- with .Values.monitoring.prometheusRule.certificateWarning }}
{{- include "holdfast.seconds" . }}
{{- else }}
{{- with include "holdfast.certificateRenewal" . }}
{{- div (mul . 3) 4 | min $week }}
{{- else }}
{{- $week }}
{{- end }}
{{- end }}
{{- end }}

{{/* How many seconds before its end a certificate is renewed; empty where that is not the chart's to say. */}}
{{- define "holdfast.certificateRenewal" -}}
{{- if eq .Values.tls.mode "auto" }}
{{- div (include "holdfast.seconds" .Values.tls.auto.certificateLife) 3 }}
{{- else if eq .Values.tls.mode "certManager" }}
{{- include "holdfast.seconds" .Values.tls.certManager.renewBefore }}
{{- end }}
{{- end }}

{{/* A duration in seconds. */}}
{{- define "holdfast.seconds" -}}
{{- $start := toDate "2006-01-02" "2000-01-01" }}
{{- sub (unixEpoch (mustDateModify . $start)) (unixEpoch $start) }}
{{- end }}

{{/* The reference of an image: (list . "api") */}}
{{- define "berth.image" -}}
{{- $top := index . 0 }}{{ $name := index . 1 }}{{ $images := $top.Values.images }}
{{- with index $images $name }}{{ . }}{{ else -}}
{{ required "images.registry: say where the images are, such as registry.example.com/berth" $images.registry }}/{{ $name }}:{{ $images.tag | default $top.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The environment that both programs have in common. */}}
{{- define "berth.settings" -}}
BERTH_ZONE: {{ required "zone: name the DNS zone of the containers' names, such as compute.example.com" .Values.zone | quote }}
BERTH_IMAGE: {{ include "berth.image" (list . "base") | quote }}
BERTH_AGENT: {{ include "berth.image" (list . "agent") | quote }}
{{- with .Values.database.address }}
BERTH_DATABASE: {{ . | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- $key := printf "BERTH_%s" ($name | upper | replace "-" "_") }}
{{- if kindIs "slice" $value }}
{{ $key }}: {{ join "," $value | quote }}
{{- else if kindIs "float64" $value }}
{{ $key }}: {{ int64 $value | quote }}
{{- else if not (kindIs "invalid" $value) }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* With the hash of what it holds, so that a change restarts the programs, one by one. */}}
{{- define "berth.settings.name" -}}
berth-settings-{{ include "berth.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{- define "berth.gateway.names" -}}
{{- range until (int .Values.gateway.replicas) }}{{ if . }},{{ end }}berth-gateway-{{ . }}{{ end }}
{{- end }}

{{- define "berth.api.replicas" -}}
{{ if .Values.database.address }}{{ .Values.api.replicas }}{{ else }}1{{ end }}
{{- end }}

{{- define "berth.api.strategy" -}}
{{ if .Values.database.address }}{type: RollingUpdate, rollingUpdate: {maxUnavailable: 1, maxSurge: 1}}{{ else }}{type: Recreate}{{ end }}
{{- end }}

{{- define "berth.api.data" -}}
{{ if .Values.database.address }}{name: data, emptyDir: {}}{{ else }}{name: data, persistentVolumeClaim: {claimName: berth-data}}{{ end }}
{{- end }}

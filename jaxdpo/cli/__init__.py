"""What every command shares: settings from YAML and arguments, the console, exit statuses."""

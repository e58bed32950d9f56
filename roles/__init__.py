"""The roles. Each is a folder with settings.py, files.py and deploy.py; none imports another."""
